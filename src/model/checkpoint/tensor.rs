//! A tensor of a checkpoint: a view into the bytes of the file.

use bytes::Bytes;
use half::{bf16, f16};

use super::error::{self, CheckpointError};

/// The type of a tensor's values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Elem {
    F16,
    Bf16,
    F32,
    F64,
    /// One that weights don't have; its name, and the bytes of a value.
    Other(&'static str, usize),
}

impl Elem {
    /// The bytes of one value.
    pub(super) fn size(self) -> usize {
        match self {
            Self::F16 | Self::Bf16 => 2,
            Self::F32 => 4,
            Self::F64 => 8,
            Self::Other(_, size) => size,
        }
    }
}

/// Which of a storage's values a tensor has, counted in values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) shape: Vec<usize>,
    /// How far the next value is, in each dimension.
    pub(super) strides: Vec<usize>,
    /// Where the first value is.
    pub(super) offset: usize,
}

impl Layout {
    /// One value after the other. `None` for impossible sizes.
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

    /// How many values there are.
    pub(super) fn len(&self) -> Option<usize> {
        self.shape
            .iter()
            .try_fold(1_usize, |len, &size| len.checked_mul(size))
    }

    /// One past the last value that is used.
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

    /// Whether the values lie one after the other.
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

/// A tensor that lies within its storage.
#[derive(Clone, Debug)]
pub(super) struct Tensor {
    elem: Elem,
    layout: Layout,
    len: usize,
    storage: Bytes,
}

impl Tensor {
    /// # Errors
    /// A layout that reaches beyond `storage` or repeats its values.
    pub(super) fn new(
        name: &str,
        elem: Elem,
        layout: Layout,
        storage: Bytes,
    ) -> Result<Self, CheckpointError> {
        let Layout { shape, strides, .. } = &layout;
        let stored = storage.len() / elem.size();
        match layout.len().zip(layout.end()) {
            // Without the first condition a few bytes could claim to be a tensor of any size.
            Some((len, end))
                if len <= stored && (end <= stored || len == 0) && strides.len() == shape.len() =>
            {
                Ok(Self {
                    elem,
                    len,
                    layout,
                    storage,
                })
            }
            _ => Err(error::tensor(
                name,
                format!(
                    "has the shape {shape:?} and strides {strides:?}, but the file holds {stored} values for it"
                ),
            )),
        }
    }

    pub(super) fn shape(&self) -> &[usize] {
        &self.layout.shape
    }

    /// The values in the order of their indices, the last index running fastest.
    ///
    /// # Errors
    /// Values that are no floating-point numbers, NaN or infinite; they are blamed on the tensor
    /// `name`.
    pub(super) fn values(&self, name: &str) -> Result<Vec<f64>, CheckpointError> {
        let values = match self.elem {
            Elem::F16 => self.read(|bytes| f16::from_le_bytes(bytes).to_f64()),
            Elem::Bf16 => self.read(|bytes| bf16::from_le_bytes(bytes).to_f64()),
            Elem::F32 => self.read(|bytes| f64::from(f32::from_le_bytes(bytes))),
            Elem::F64 => self.read(f64::from_le_bytes),
            Elem::Other(elem, _) => {
                let wanted = "float32, float64, float16 or bfloat16";
                return Err(error::tensor(
                    name,
                    format!("holds values of type {elem}, but must hold {wanted}"),
                ));
            }
        };
        match values.iter().find(|value| !value.is_finite()) {
            None => Ok(values),
            Some(value) => {
                let count = values.iter().filter(|value| !value.is_finite()).count();
                let reason = format!(
                    "holds {value} ({count} of {} values are not finite numbers)",
                    values.len()
                );
                Err(error::tensor(
                    name,
                    reason + "; the training that wrote it has diverged",
                ))
            }
        }
    }

    fn read<const SIZE: usize>(&self, value: impl Fn([u8; SIZE]) -> f64) -> Vec<f64> {
        if self.len == 0 {
            return Vec::new();
        }
        let stored = self.storage.as_chunks::<SIZE>().0;
        let Layout {
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
        let layout = Layout {
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
                error.contains("`w`") && error.contains("holds 7 values"),
                "{shape:?}: {error}"
            );
        }
    }

    #[test]
    fn every_float_type_is_read_and_others_are_refused() {
        let one = |elem: Elem, bytes: &[u8]| {
            let layout = Layout::contiguous(vec![1]).unwrap();
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
                .contains("`w` holds values of type int64")
        );
        assert!(
            one(Elem::F32, &f32::NAN.to_le_bytes())
                .unwrap_err()
                .contains("`w` holds NaN (1 of 1")
        );
    }
}
