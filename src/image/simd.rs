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

/// Moves between memory and vectors, which the compiler does not make single instructions of
/// otherwise.
#[cfg(target_arch = "x86_64")]
pub(super) mod x86 {
    use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_storeu_si128};

    /// The first 16 bytes of a slice.
    ///
    /// # Panics
    /// If there are fewer.
    #[inline(always)]
    #[allow(unsafe_code)]
    pub fn load(bytes: &[u8]) -> __m128i {
        let bytes: &[u8; 16] = bytes.first_chunk().expect("there are 16 bytes");
        // SAFETY: 16 bytes are read, at any alignment, and x86-64 has SSE2.
        unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
    }

    /// Eight words.
    #[inline(always)]
    #[allow(unsafe_code)]
    pub fn load_words(words: &[i16; 8]) -> __m128i {
        // SAFETY: 16 bytes are read, at any alignment, and x86-64 has SSE2.
        unsafe { _mm_loadu_si128(words.as_ptr().cast()) }
    }

    #[inline(always)]
    #[allow(unsafe_code)]
    pub fn store(bytes: &mut [u8; 16], vector: __m128i) {
        // SAFETY: 16 bytes are written, at any alignment, and x86-64 has SSE2.
        unsafe { _mm_storeu_si128(bytes.as_mut_ptr().cast(), vector) }
    }
}
