//! EXIF orientations: how the stored pixels of an image relate to the upright image.

/// Maps an upright image to the stored one: its axes may be swapped, and each may be reversed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Orientation {
    /// Columns of the upright image are stored as rows.
    pub(super) swapped: bool,
    /// The upright axis that is stored along a row runs backwards.
    pub(super) mirrored_x: bool,
    /// The upright axis that is stored along a column runs backwards.
    pub(super) mirrored_y: bool,
}

impl Orientation {
    /// Interprets the EXIF `Orientation` values 1 to 8; any other value counts as 1, upright.
    pub fn from_exif(value: u8) -> Self {
        let (swapped, mirrored_x, mirrored_y) = match value {
            2 => (false, true, false),
            3 => (false, true, true),
            4 => (false, false, true),
            5 => (true, false, false),
            6 => (true, false, true),
            7 => (true, true, true),
            8 => (true, true, false),
            _ => (false, false, false),
        };

        Self {
            swapped,
            mirrored_x,
            mirrored_y,
        }
    }

    /// The orientation of a picture that is turned to the left by a quarter after this one.
    pub(super) fn then_quarter_left(self) -> Self {
        Self {
            swapped: !self.swapped,
            mirrored_x: self.mirrored_x == self.swapped,
            mirrored_y: self.mirrored_y != self.swapped,
        }
    }

    /// The orientation of a picture that is mirrored after this one: top and bottom, or else left
    /// and right, change places.
    pub(super) fn then_mirrored(self, top_bottom: bool) -> Self {
        let along_rows = top_bottom == self.swapped;
        Self {
            mirrored_x: self.mirrored_x != along_rows,
            mirrored_y: self.mirrored_y == along_rows,
            ..self
        }
    }

    /// Reads the orientation from an EXIF block that starts with its TIFF header, or with the
    /// prefix that EXIF has in JPEG and that some programs also write to other formats. A malformed
    /// block counts as upright.
    pub(super) fn from_exif_block(block: &[u8]) -> Self {
        let block = block.strip_prefix(b"Exif\0\0").unwrap_or(block);
        image::metadata::Orientation::from_exif_chunk(block).map_or_else(Self::default, Self::from)
    }
}

impl From<image::metadata::Orientation> for Orientation {
    fn from(orientation: image::metadata::Orientation) -> Self {
        Self::from_exif(orientation.to_exif())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_and_mirrors_are_added_up() {
        let upright = Orientation::default();
        let left = upright.then_quarter_left();
        assert_eq!(left, Orientation::from_exif(8));
        assert_eq!(left.then_quarter_left(), Orientation::from_exif(3));
        let right = left.then_quarter_left().then_quarter_left();
        assert_eq!(right, Orientation::from_exif(6));
        assert_eq!(right.then_quarter_left(), upright);

        assert_eq!(upright.then_mirrored(false), Orientation::from_exif(2));
        assert_eq!(upright.then_mirrored(true), Orientation::from_exif(4));
        // Turned to the right, then mirrored: what is stored is transposed.
        assert_eq!(right.then_mirrored(false), Orientation::from_exif(5));
        assert_eq!(left.then_mirrored(true), Orientation::from_exif(5));
        assert_eq!(left.then_mirrored(false), Orientation::from_exif(7));
    }

    #[test]
    fn malformed_blocks_count_as_upright() {
        for block in [
            &b""[..],
            b"II",
            b"II*\0\xff\xff\xff\xff",
            b"MM\0*\0\0\0\x08\xff\xff\0",
            b"garbage, no TIFF header",
        ] {
            assert_eq!(Orientation::from_exif_block(block), Orientation::default());
        }
    }

    #[test]
    fn the_orientation_is_read_in_both_byte_orders() {
        let little = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0";
        let big = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0";
        assert_eq!(
            Orientation::from_exif_block(little),
            Orientation::from_exif(6)
        );
        assert_eq!(Orientation::from_exif_block(big), Orientation::from_exif(6));
        assert_eq!(
            Orientation::from_exif_block(&[b"Exif\0\0", &big[..]].concat()),
            Orientation::from_exif(6)
        );
    }
}
