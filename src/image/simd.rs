//! Functions that are compiled several times: for any processor, and for those with AVX2 and BMI2, which
//! work on more values at once, and shift by any number of bits in one step; some for AVX-512 as well.
//! The processor decides at run time which one is called.

/// Defines functions with two implementations: the one in parentheses, which is compiled for AVX2 and
/// BMI2, is called where there are both. The two are the same inlined function unless instructions
/// are chosen by hand. One in brackets before them is called where there is AVX-512 with its products
/// of words (VNNI) and permutations of bytes (VBMI).
macro_rules! simd {
    () => {};
    (
        $(#[$attribute:meta])*
        fn $name:ident($($argument:ident: $type:ty),* $(,)?) $(-> $result:ty)?
            = $avx2:ident($with_avx2:expr), $without:expr;
        $($others:tt)*
    ) => {
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,bmi2")]
        fn $avx2($($argument: $type),*) $(-> $result)? {
            ($with_avx2)($($argument),*)
        }

        $(#[$attribute])*
        #[inline]
        #[allow(unsafe_code)]
        fn $name($($argument: $type),*) $(-> $result)? {
            #[cfg(target_arch = "x86_64")]
            if std::arch::is_x86_feature_detected!("avx2")
                && std::arch::is_x86_feature_detected!("bmi2")
            {
                // SAFETY: the processor has AVX2 and BMI2, which is all that the function requires.
                return unsafe { $avx2($($argument),*) };
            }
            ($without)($($argument),*)
        }

        $crate::image::simd::simd! { $($others)* }
    };
    (
        $(#[$attribute:meta])*
        fn $name:ident($($argument:ident: $type:ty),* $(,)?) $(-> $result:ty)?
            = [$avx512:ident($with_avx512:expr)], $avx2:ident($with_avx2:expr), $without:expr;
        $($others:tt)*
    ) => {
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx512bw,avx512vl,avx512vbmi,avx512vnni")]
        fn $avx512($($argument: $type),*) $(-> $result)? {
            ($with_avx512)($($argument),*)
        }

        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,bmi2")]
        fn $avx2($($argument: $type),*) $(-> $result)? {
            ($with_avx2)($($argument),*)
        }

        $(#[$attribute])*
        #[inline]
        #[allow(unsafe_code)]
        fn $name($($argument: $type),*) $(-> $result)? {
            #[cfg(target_arch = "x86_64")]
            {
                if !$crate::image::simd::is_limited()
                    && std::arch::is_x86_feature_detected!("avx512bw")
                    && std::arch::is_x86_feature_detected!("avx512vl")
                    && std::arch::is_x86_feature_detected!("avx512vbmi")
                    && std::arch::is_x86_feature_detected!("avx512vnni")
                {
                    // SAFETY: the processor has the features that the function requires.
                    return unsafe { $avx512($($argument),*) };
                }
                if std::arch::is_x86_feature_detected!("avx2")
                    && std::arch::is_x86_feature_detected!("bmi2")
                {
                    // SAFETY: the processor has AVX2 and BMI2, which is all that the function
                    // requires.
                    return unsafe { $avx2($($argument),*) };
                }
            }
            ($without)($($argument),*)
        }

        $crate::image::simd::simd! { $($others)* }
    };
}

pub(super) use simd;

#[cfg(test)]
thread_local! {
    /// Whether this thread does without AVX-512.
    static LIMITED: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// Whether there is to be no AVX-512, so that tests compare the functions for AVX2 as well.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(super) fn is_limited() -> bool {
    #[cfg(test)]
    let limited = LIMITED.get();
    #[cfg(not(test))]
    let limited = false;
    limited
}

/// Does a test with all that the processor has, and then without AVX-512.
#[cfg(test)]
pub(super) fn with_and_without_avx512(test: impl Fn()) {
    for limited in [false, true] {
        LIMITED.set(limited);
        test();
    }
    LIMITED.set(false);
}

/// Moves between memory and vectors, which the compiler does not make single instructions of
/// otherwise.
#[cfg(target_arch = "x86_64")]
pub(super) mod x86 {
    use std::arch::x86_64::{
        __m128i, __m256i, __m512i, _mm_loadu_si128, _mm_storeu_si128, _mm256_loadu_si256,
        _mm256_storeu_si256, _mm512_loadu_si512, _mm512_storeu_si512,
    };

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

    /// Thirty-two bytes.
    #[inline]
    #[target_feature(enable = "avx")]
    #[allow(unsafe_code)]
    pub fn load_32(bytes: &[u8; 32]) -> __m256i {
        // SAFETY: 32 bytes are read, at any alignment.
        unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
    }

    #[inline]
    #[target_feature(enable = "avx")]
    #[allow(unsafe_code)]
    pub fn store_32(bytes: &mut [u8; 32], vector: __m256i) {
        // SAFETY: 32 bytes are written, at any alignment.
        unsafe { _mm256_storeu_si256(bytes.as_mut_ptr().cast(), vector) }
    }

    /// Sixty-four bytes.
    #[inline]
    #[target_feature(enable = "avx512f")]
    #[allow(unsafe_code)]
    pub fn load_64(bytes: &[u8; 64]) -> __m512i {
        // SAFETY: 64 bytes are read, at any alignment.
        unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    #[allow(unsafe_code)]
    pub fn store_64(bytes: &mut [u8; 64], vector: __m512i) {
        // SAFETY: 64 bytes are written, at any alignment.
        unsafe { _mm512_storeu_si512(bytes.as_mut_ptr().cast(), vector) }
    }
}
