//! Functions that are compiled twice: for any processor, and for those with AVX2, which work on
//! more values at once. The processor decides at run time which one is called.

/// Defines functions that call the AVX2 version of an inlined function where there is AVX2.
macro_rules! simd {
    ($(
        $(#[$attribute:meta])*
        fn $name:ident($($argument:ident: $type:ty),* $(,)?) = $avx2:ident, $inline:expr;
    )*) => {
        $(
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2")]
            fn $avx2($($argument: $type),*) {
                ($inline)($($argument),*);
            }

            $(#[$attribute])*
            #[inline]
            #[allow(unsafe_code)]
            fn $name($($argument: $type),*) {
                #[cfg(target_arch = "x86_64")]
                if std::arch::is_x86_feature_detected!("avx2") {
                    // SAFETY: the processor has AVX2, which is all that the function requires.
                    return unsafe { $avx2($($argument),*) };
                }
                ($inline)($($argument),*);
            }
        )*
    };
}

pub(super) use simd;
