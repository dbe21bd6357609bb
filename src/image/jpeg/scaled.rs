//! Large JPEGs at a half, a quarter or an eighth of their size, scaled within the inverse transform.

use jpeg_decoder::{ColorTransform, Decoder};

use super::{Header, Layout, Pixels};

/// How much a JPEG is scaled down while it is decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scale {
    Half,
    Quarter,
    Eighth,
}

impl Scale {
    const SMALLEST_FIRST: [Self; 3] = [Self::Eighth, Self::Quarter, Self::Half];

    fn divisor(self) -> u32 {
        match self {
            Self::Half => 2,
            Self::Quarter => 4,
            Self::Eighth => 8,
        }
    }

    /// The strongest that leaves the shorter side at least `least` pixels.
    pub fn choose(header: &Header, least: u32) -> Option<Self> {
        let shorter = header.width.min(header.height);
        Self::SMALLEST_FIRST.into_iter().find(|scale| shorter / scale.divisor() >= least)
    }

    /// A side of the image after scaling.
    pub fn of(self, side: u32) -> u32 {
        side.div_ceil(self.divisor())
    }
}

/// Decodes into `pixels`, whose layout and orientation have been set; sets size and data. After a failure they are
/// unspecified, and the exact decoder is to judge the file.
pub(super) fn decode(pixels: &mut Pixels, encoded: &[u8], header: &Header, scale: Scale) -> Option<()> {
    #[cfg(feature = "turbojpeg")]
    if super::turbo::decode_scaled(pixels, encoded, header, scale).is_ok() {
        return Some(());
    }
    let mut decoder = Decoder::new(encoded);
    decoder.set_color_transform(match pixels.layout {
        Layout::Gray => ColorTransform::Grayscale,
        _ if header.stores_rgb() => ColorTransform::RGB,
        _ => ColorTransform::YCbCr,
    });
    let (width, height) = (scale.of(header.width), scale.of(header.height));
    let [asked_width, asked_height] = [width, height].map(|side| u16::try_from(side).unwrap_or(u16::MAX));
    decoder.read_info().ok()?;
    let (scaled_width, scaled_height) = decoder.scale(asked_width, asked_height).ok()?;
    let data = decoder.decode().ok()?;
    let expected = width as usize * height as usize * pixels.layout.channels();
    if (u32::from(scaled_width), u32::from(scaled_height)) != (width, height) || data.len() != expected {
        return None;
    }
    (pixels.width, pixels.height, pixels.data) = (width, height, data);
    Some(())
}
