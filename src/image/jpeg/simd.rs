//! Functions that are compiled twice: for any processor, and for those with AVX2, which work on
//! more values at once. The processor decides at run time which one is called.

/// Defines functions with two implementations: the one in parentheses, which is compiled for AVX2, is
/// called where there is AVX2. The two are the same inlined function unless instructions are chosen
/// by hand.
macro_rules! simd {
    ($(
        $(#[$attribute:meta])*
        fn $name:ident($($argument:ident: $type:ty),* $(,)?)
            = $avx2:ident($with_avx2:expr), $without:expr;
    )*) => {
        $(
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2")]
            fn $avx2($($argument: $type),*) {
                ($with_avx2)($($argument),*);
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
                ($without)($($argument),*);
            }
        )*
    };
}

pub(super) use simd;
