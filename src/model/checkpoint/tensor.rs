//! A tensor of a checkpoint: a strided view of the bytes of the file.

use bytes::Bytes;
use half::{bf16, f16};

use super::error::{self, CheckpointError};

/// The element type of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Elem {
    F16,
    Bf16,
    F32,
    F64,
    /// A type that weights cannot have: its name and the size of a value in bytes.
    Other(&'static str, usize),
}

impl Elem {
    /// Size of one value in bytes.
    pub(super) fn size(self) -> usize {
        match self {
            Self::F16 | Self::Bf16 => 2,
            Self::F32 => 4,
            Self::F64 => 8,
            Self::Other(_, size) => size,
        }
    }
}

/// The values of a storage that a tensor consists of. Strides and offset count values, not bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct StridedLayout {
    pub(super) shape: Vec<usize>,
    /// Distance to the next value in each dimension.
    pub(super) strides: Vec<usize>,
    /// Index of the first value.
    pub(super) offset: usize,
}

impl StridedLayout {
    /// A layout without gaps, in C order. `None` if the number of values overflows.
    pub(super) fn contiguous(shape: Vec<usize>) -> Option<Self> {
        let mut stride = 1_usize;
        let mut strides = vec![0; shape.len()];
        for (of, &size) in strides.iter_mut().zip(&shape).rev() {
            *of = stride;
            stride = stride.checked_mul(size)?;
        }
        Some(Self {
            shape,
            strides,
            offset: 0,
        })
    }

    /// Number of values; `None` if it overflows.
    pub(super) fn len(&self) -> Option<usize> {
        self.shape
            .iter()
            .try_fold(1_usize, |len, &size| len.checked_mul(size))
    }

    /// One past the index of the last value; `None` if it overflows.
    fn end(&self) -> Option<usize> {
        let last = self
            .shape
            .iter()
            .zip(&self.strides)
            .try_fold(self.offset, |at, (&size, &stride)| {
                at.checked_add(size.saturating_sub(1).checked_mul(stride)?)
            })?;
        last.checked_add(1)
    }

    /// Whether the values are stored without gaps, in C order.
    fn is_contiguous(&self) -> bool {
        let mut stride = 1;
        self.shape
            .iter()
            .zip(&self.strides)
            .rev()
            .all(|(&size, &of)| {
                let fits = size == 1 || of == stride;
                stride *= size;
                fits
            })
    }
}

/// A tensor that is known to be within its storage.
#[derive(Clone, Debug)]
pub(super) struct Tensor {
    elem: Elem,
    layout: StridedLayout,
    len: usize,
    storage: Bytes,
    /// What the values are multiplied by, of the same shape: PyTorch's pruning keeps both.
    mask: Option<Box<Tensor>>,
}

impl Tensor {
    /// # Errors
    /// A layout that reaches beyond `storage`, or that has more values than `storage`.
    pub(super) fn new(
        name: &str,
        elem: Elem,
        layout: StridedLayout,
        storage: Bytes,
    ) -> Result<Self, CheckpointError> {
        let StridedLayout { shape, strides, .. } = &layout;
        let stored = storage.len() / elem.size();
        match layout.len().zip(layout.end()) {
            // The first condition bounds the memory for the values: with strides of 0, a few bytes
            // could claim to be a tensor of any size.
            Some((len, end))
                if len <= stored && (end <= stored || len == 0) && strides.len() == shape.len() =>
            {
                Ok(Self {
                    elem,
                    len,
                    layout,
                    storage,
                    mask: None,
                })
            }
            _ => Err(error::tensor(
                name,
                format!(
                    "has the shape {shape:?} and strides {strides:?}, \
                     but the file contains {stored} values for it"
                ),
            )),
        }
    }

    pub(super) fn shape(&self) -> &[usize] {
        &self.layout.shape
    }

    /// Number of values.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Whether the values are floating-point numbers, as weights are.
    pub(super) fn is_float(&self) -> bool {
        !matches!(self.elem, Elem::Other(..))
    }

    /// This tensor multiplied by a mask of the same shape.
    pub(super) fn masked(self, mask: Self) -> Self {
        Self {
            mask: Some(Box::new(mask)),
            ..self
        }
    }

    /// Whether both are the same values of the same file.
    pub(super) fn is(&self, other: &Self) -> bool {
        self.layout == other.layout
            && self.elem == other.elem
            && self.storage.as_ptr() == other.storage.as_ptr()
    }

    /// The values in C order: the last index varies fastest. `name` is used in errors.
    ///
    /// # Errors
    /// Values that are not floating-point numbers, or are not finite.
    pub(super) fn values(&self, name: &str) -> Result<Vec<f64>, CheckpointError> {
        let mut values = match self.elem {
            Elem::F16 => self.read(|bytes| f16::from_le_bytes(bytes).to_f64()),
            Elem::Bf16 => self.read(|bytes| bf16::from_le_bytes(bytes).to_f64()),
            Elem::F32 => self.read(|bytes| f64::from(f32::from_le_bytes(bytes))),
            Elem::F64 => self.read(f64::from_le_bytes),
            Elem::Other(elem, _) => {
                return Err(error::tensor(
                    name,
                    format!(
                        "has values of type {elem}; \
                         float32, float64, float16 or bfloat16 is needed"
                    ),
                ));
            }
        };

        if let Some(mask) = &self.mask {
            let mask = mask.values(&format!("{name}_mask"))?;
            values
                .iter_mut()
                .zip(mask)
                .for_each(|(value, mask)| *value *= mask);
        }
        if let Some(value) = values.iter().find(|value| !value.is_finite()) {
            let count = values.iter().filter(|value| !value.is_finite()).count();
            return Err(error::tensor(
                name,
                format!(
                    "contains {value} ({count} of {} values are not finite numbers); \
                     the training that wrote it has diverged",
                    values.len()
                ),
            ));
        }
        Ok(values)
    }

    fn read<const SIZE: usize>(&self, value: impl Fn([u8; SIZE]) -> f64) -> Vec<f64> {
        if self.len == 0 {
            return Vec::new();
        }
        let stored = self.storage.as_chunks::<SIZE>().0;
        let StridedLayout {
            shape,
            strides,
            offset,
        } = &self.layout;
        if self.layout.is_contiguous() {
            return stored[*offset..][..self.len]
                .iter()
                .map(|bytes| value(*bytes))
                .collect();
        }

        let mut values = Vec::with_capacity(self.len);
        let mut index = vec![0; shape.len()];
        while values.len() < self.len {
            let at: usize = index
                .iter()
                .zip(strides)
                .map(|(index, stride)| index * stride)
                .sum();
            values.push(value(stored[offset + at]));
            for (index, size) in index.iter_mut().zip(shape).rev() {
                *index += 1;
                if *index < *size {
                    break;
                }
                *index = 0;
            }
        }
        values
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn storage(values: &[f32]) -> Bytes {
        values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect::<Vec<u8>>()
            .into()
    }

    fn strided(shape: &[usize], strides: &[usize], offset: usize) -> Result<Vec<f64>, String> {
        let storage = storage(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let layout = StridedLayout {
            shape: shape.into(),
            strides: strides.into(),
            offset,
        };
        let tensor = Tensor::new("w", Elem::F32, layout, storage);
        tensor
            .and_then(|tensor| tensor.values("w"))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn views_are_read_in_the_order_of_their_indices() {
        assert_eq!(
            strided(&[2, 3], &[3, 1], 1).unwrap(),
            [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
        );
        assert_eq!(
            strided(&[3, 2], &[1, 3], 0).unwrap(),
            [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]
        );
        assert_eq!(
            strided(&[2, 1, 2], &[4, 9, 2], 0).unwrap(),
            [0.0, 2.0, 4.0, 6.0]
        );
        assert_eq!(strided(&[], &[], 6).unwrap(), [6.0]);
        assert_eq!(strided(&[0, 5], &[5, 1], 0).unwrap(), [0.0; 0]);
        assert_eq!(strided(&[2], &[0], 3).unwrap(), [3.0, 3.0]);
    }

    #[test]
    fn views_beyond_the_storage_are_refused() {
        for (shape, strides, offset) in [
            (&[2, 3][..], &[3, 1][..], 2),
            (&[2, 3], &[6, 1], 0),
            (&[8], &[0], 0),
            (&[usize::MAX, 2], &[1, 1], 0),
            (&[2], &[usize::MAX], 7),
            (&[1], &[1], usize::MAX),
            (&[2, 2], &[1], 0),
        ] {
            let error = strided(shape, strides, offset).unwrap_err();
            assert!(
                error.contains("`w`") && error.contains("contains 7 values"),
                "{shape:?}: {error}"
            );
        }
    }

    #[test]
    fn every_float_type_is_read_and_others_are_refused() {
        let one = |elem: Elem, bytes: &[u8]| {
            let layout = StridedLayout::contiguous(vec![1]).unwrap();
            let tensor = Tensor::new("w", elem, layout, Bytes::copy_from_slice(bytes)).unwrap();
            tensor.values("w").map_err(|error| error.to_string())
        };
        assert_eq!(
            one(Elem::F16, &f16::from_f32(-1.5).to_le_bytes()).unwrap(),
            [-1.5]
        );
        assert_eq!(
            one(Elem::Bf16, &bf16::from_f32(-1.5).to_le_bytes()).unwrap(),
            [-1.5]
        );
        assert_eq!(one(Elem::F64, &(-1.5_f64).to_le_bytes()).unwrap(), [-1.5]);
        assert!(
            one(Elem::Other("int64", 8), &[0; 8])
                .unwrap_err()
                .contains("`w` has values of type int64")
        );
        assert!(
            one(Elem::F32, &f32::NAN.to_le_bytes())
                .unwrap_err()
                .contains("`w` contains NaN (1 of 1")
        );
    }
}
