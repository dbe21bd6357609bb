//! What is scaled: the pixels of a stored image, or of a part of it.

use std::ops::Range;

use fast_image_resize::{
    ImageView, IntoImageView, PixelTrait, PixelType,
    images::ImageRef,
    pixels::{InnerPixel, U8, U8x2, U8x3, U8x4},
};

use super::{ImageError, pixels::PixelLayout};

/// Pixels of a stored image, or of a part of it that contains what is scaled.
pub(super) struct SourceView<'a, V> {
    pub view: &'a V,
    /// The column and row of the stored image where the view begins.
    pub origin: (u32, u32),
    pub layout: PixelLayout,
}

impl<V: IntoImageView> SourceView<'_, V> {
    /// Hands these rows of the stored image over as bytes, each from the view's first column on.
    ///
    /// # Errors
    /// If the view's pixels are not of the layout.
    pub fn with_rows<R>(
        &self,
        rows: Range<u32>,
        work: impl FnOnce(&[&[u8]]) -> R,
    ) -> Result<R, ImageError> {
        match self.layout.channels() {
            1 => self.with_rows_of::<U8, R>(rows, work),
            2 => self.with_rows_of::<U8x2, R>(rows, work),
            3 => self.with_rows_of::<U8x3, R>(rows, work),
            _ => self.with_rows_of::<U8x4, R>(rows, work),
        }
    }

    fn with_rows_of<P, R>(
        &self,
        rows: Range<u32>,
        work: impl FnOnce(&[&[u8]]) -> R,
    ) -> Result<R, ImageError>
    where
        P: PixelTrait + InnerPixel<Component = u8>,
    {
        let view = self
            .view
            .image_view::<P>()
            .ok_or_else(|| ImageError::Resize("the pixels have another layout".into()))?;
        let rows: Vec<_> = view
            .iter_rows(rows.start - self.origin.1)
            .take(rows.len())
            .map(P::components)
            .collect();
        Ok(work(&rows))
    }
}

/// A view of packed pixels for the resampler.
pub(super) fn view(
    width: u32,
    height: u32,
    data: &[u8],
    layout: PixelLayout,
) -> Result<ImageRef<'_>, ImageError> {
    ImageRef::new(width, height, data, pixel_type(layout)).map_err(resize_error)
}

pub(super) fn resize_error(error: impl std::fmt::Display) -> ImageError {
    ImageError::Resize(error.to_string())
}

pub(super) fn pixel_type(layout: PixelLayout) -> PixelType {
    match layout {
        PixelLayout::Gray => PixelType::U8,
        PixelLayout::GrayAlpha => PixelType::U8x2,
        PixelLayout::Rgb | PixelLayout::Bgr => PixelType::U8x3,
        PixelLayout::Rgba | PixelLayout::Bgra => PixelType::U8x4,
    }
}
