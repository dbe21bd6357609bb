//! The pictures of a file: which of them make up the photo, how large it is, and how it is turned.

use heifer::heifer_isobmff::{HeifFile, ItemId, boxes::Property};

use super::{
    super::{ImageError, orientation::Orientation},
    errors::Named,
};

/// How a picture is coded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Coding {
    Hevc,
    Av1,
}

/// The pictures of a file and how they are put together.
pub(super) struct Layout {
    /// The size of the whole, before it is cropped and turned.
    pub width: u32,
    pub height: u32,
    pub coding: Coding,
    /// The coded pictures, row by row.
    pub tiles: Vec<ItemId>,
    pub columns: usize,
    pub tile_width: u32,
    pub tile_height: u32,
    pub shown: Shown,
}

/// The part of the whole that is shown, and how it is turned.
#[derive(Clone, Copy)]
pub(super) struct Shown {
    pub left: u32,
    pub top: u32,
    pub width: u32,
    pub height: u32,
    pub orientation: Orientation,
}

impl Layout {
    /// Reads how the photo of the file is put together.
    pub fn of(file: &HeifFile<'_>, named: Named) -> Result<Self, ImageError> {
        let reader = Reader { file, named };
        let primary = file.primary_id;
        if reader.item_type(primary)? != *b"iden" {
            return reader.picture(primary);
        }
        // Another picture, turned.
        let [source] = *file.referenced_items(primary, b"dimg") else {
            return Err(named.damaged("its `iden` item must refer to exactly one picture"));
        };
        let mut layout = reader.picture(source)?;
        reader.show(&mut layout.shown, primary)?;
        Ok(layout)
    }
}

struct Reader<'a> {
    file: &'a HeifFile<'a>,
    named: Named,
}

impl Reader<'_> {
    /// A coded picture, or one of tiles.
    fn picture(&self, id: ItemId) -> Result<Layout, ImageError> {
        let mut layout = match &self.item_type(id)? {
            b"grid" => self.grid(id)?,
            coded => {
                let coding = self.coding(coded)?;
                let (width, height) = self.size(id)?;
                Layout {
                    width,
                    height,
                    coding,
                    tiles: vec![id],
                    columns: 1,
                    tile_width: width,
                    tile_height: height,
                    shown: Shown::whole(width, height),
                }
            }
        };
        self.show(&mut layout.shown, id)?;
        Ok(layout)
    }

    fn grid(&self, id: ItemId) -> Result<Layout, ImageError> {
        let named = self.named;
        let grid = self.file.grid(id).map_err(|error| named.container(error))?;
        let tiles = self.file.referenced_items(id, b"dimg").to_vec();
        let first = *tiles
            .first()
            .ok_or_else(|| named.damaged("its grid is empty"))?;
        let (tile_width, tile_height) = self.size(first)?;
        let coding = self.coding(&self.item_type(first)?)?;
        let columns = usize::from(grid.columns);
        let fits = grid.output_width.div_ceil(tile_width) == u32::from(grid.columns)
            && grid.output_height.div_ceil(tile_height) == u32::from(grid.rows)
            && tiles.len() == columns * usize::from(grid.rows);
        if !fits {
            return Err(named.damaged("its tiles don't make up its picture"));
        }
        for &tile in &tiles {
            if self.coding(&self.item_type(tile)?)? != coding {
                return Err(named.damaged("its tiles are coded in different ways"));
            }
        }
        Ok(Layout {
            width: grid.output_width,
            height: grid.output_height,
            coding,
            tiles,
            columns,
            tile_width,
            tile_height,
            shown: Shown::whole(grid.output_width, grid.output_height),
        })
    }

    fn item_type(&self, id: ItemId) -> Result<[u8; 4], ImageError> {
        let item = self.file.item(id);
        Ok(item
            .map_err(|error| self.named.container(error))?
            .item_type
            .0)
    }

    /// Rejects pictures that are coded in another way.
    fn coding(&self, kind: &[u8; 4]) -> Result<Coding, ImageError> {
        match kind {
            b"hvc1" => Ok(Coding::Hevc),
            b"av01" => Ok(Coding::Av1),
            other => Err(self.named.unsupported(format!(
                "its picture is of the type {}",
                other.escape_ascii()
            ))),
        }
    }

    /// The size of a picture, which is not zero.
    fn size(&self, id: ItemId) -> Result<(u32, u32), ImageError> {
        let size = self.file.image_size(id);
        match size.map_err(|error| self.named.container(error))? {
            Some((width, height)) if width > 0 && height > 0 => Ok((width, height)),
            Some((width, height)) => Err(ImageError::ZeroSize { width, height }),
            None => Err(self.named.damaged("the size of its picture is missing")),
        }
    }

    /// Crops and turns as a picture's properties say, in their order.
    fn show(&self, shown: &mut Shown, id: ItemId) -> Result<(), ImageError> {
        let named = self.named;
        let properties = self.file.item_properties(id);
        for property in properties.map_err(|error| named.container(error))? {
            match *property {
                Property::Rotation(quarters) => {
                    for _ in 0..quarters % 4 {
                        shown.orientation = shown.orientation.then_quarter_left();
                    }
                }
                Property::Mirror(top_bottom) => {
                    shown.orientation = shown.orientation.then_mirrored(top_bottom);
                }
                Property::CleanAperture {
                    width,
                    height,
                    horiz_offset,
                    vert_offset,
                } => {
                    if shown.orientation != Orientation::default() {
                        return Err(named.unsupported("its picture is turned before it is cropped"));
                    }
                    let wrong = || named.damaged("its clean aperture reaches beyond the picture");
                    let (left, width) =
                        aperture(shown.width, width, horiz_offset).ok_or_else(wrong)?;
                    let (top, height) =
                        aperture(shown.height, height, vert_offset).ok_or_else(wrong)?;
                    *shown = Shown {
                        left: shown.left + left,
                        top: shown.top + top,
                        width,
                        height,
                        ..*shown
                    };
                }
                _ => {}
            }
        }
        Ok(())
    }
}

impl Shown {
    fn whole(width: u32, height: u32) -> Self {
        Self {
            left: 0,
            top: 0,
            width,
            height,
            orientation: Orientation::default(),
        }
    }
}

/// The start and the length of a clean aperture along one side: a length, and the distance of its
/// centre from that of the side, both fractions (ISO/IEC 14496-12). `None` if it is not within the
/// side.
fn aperture(side: u32, length: (u32, u32), offset: (i32, u32)) -> Option<(u32, u32)> {
    if length.1 == 0 || offset.1 == 0 {
        return None;
    }
    let length = (f64::from(length.0) / f64::from(length.1)).round();
    let centre = f64::from(offset.0) / f64::from(offset.1) + (f64::from(side) - 1.0) / 2.0;
    let start = (centre - (length - 1.0) / 2.0).round();
    let is_within = length >= 1.0 && start >= 0.0 && start + length <= f64::from(side);
    is_within.then_some((start as u32, length as u32))
}
