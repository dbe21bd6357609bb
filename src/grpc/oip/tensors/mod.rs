//! Input tensors: from a request to its images. All fields are untrusted: names, types, shapes and
//! sizes.

use bytes::{BufMut, Bytes, BytesMut};

use super::Form;
use crate::{
    image::{Crop, Geometry, Source},
    inference::{InferTensorContents, ModelInferRequest, model_infer_request::InferInputTensor},
    model::{IMAGES, Normalization},
};

/// The most images in one request.
pub const MAX_IMAGES: usize = 64;
/// The parameter of inputs whose data is in shared memory.
const SHARED_MEMORY: &str = "shared_memory_region";

/// The input of a model under one of its names.
#[derive(Clone, Copy, Debug)]
pub struct Expected {
    pub form: Form,
    pub geometry: Geometry,
    /// How FP32 tensors are normalized; `None` if the model accepts none.
    pub normalization: Option<Normalization>,
}

/// Why a tensor can't be used. Every message says what was wrong and what would be right.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum TensorError {
    #[error(
        "the request has {0} inputs; this model takes `{IMAGES}` once, and perhaps `regions` beside it"
    )]
    Inputs(usize),
    #[error("there is no input `{0}`; this model takes `{IMAGES}`")]
    UnknownInput(String),
    #[error("there is no output `{0}`; this model gives `logits`, `probabilities` and `embedding`")]
    UnknownOutput(String),
    #[error("the output `{0}` is requested twice")]
    SameOutput(&'static str),
    #[error(
        "shared memory is not supported; send the data in the request, and read it from the answer"
    )]
    SharedMemory,
    #[error("`{IMAGES}` is {got}; this model takes {expected}")]
    Datatype { got: String, expected: String },
    #[error(
        "the shape of `{IMAGES}` is {got:?}; this model takes {expected}, where N is 1 to \
         {MAX_IMAGES}"
    )]
    Shape { got: Vec<i64>, expected: String },
    #[error("the request has no data; send it in raw_input_contents, or in the input's contents")]
    NoData,
    #[error(
        "the request has data both in raw_input_contents and in the input's contents; send one of \
         the two"
    )]
    DuplicateData,
    #[error("the request has {0} raw_input_contents; send one for each input")]
    RawContents(usize),
    #[error(
        "`regions` is {0}; it must be FP32 [N, R, 4]: left, top, width and height of R regions of \
         each of the N images, at most {MAX_IMAGES} in all"
    )]
    Regions(String),
    #[error(
        "`regions` is for {regions} images, but the request has {images}; send regions for each image"
    )]
    RegionsOfOthers { images: usize, regions: usize },
    #[error("the parameter `{name}` must be {expected}")]
    Parameter {
        name: &'static str,
        expected: &'static str,
    },
    #[error(
        "the parameters `allow_labels`, `deny_labels` and `min_probability` are for outputs with the \
         parameter `classification`"
    )]
    FilterOfTensors,
    #[error("{datatype} {shape:?} takes {expected} {unit}, but there are {got}")]
    Size {
        datatype: &'static str,
        shape: Vec<i64>,
        unit: &'static str,
        expected: usize,
        got: usize,
    },
    #[error("the contents hold the value {0}, which is not a UINT8")]
    ValueOutOfRange(u32),
    #[error(
        "the raw BYTES end within image {image} of {of}; each image is its length in 4 bytes, \
         little-endian, followed by the file"
    )]
    Truncated { image: usize, of: usize },
    #[error(
        "{0} bytes of the raw BYTES are left after the last image; check the shape and the images' \
         lengths"
    )]
    TrailingBytes(usize),
}

/// The accepted element types.
#[derive(Clone, Copy, PartialEq)]
enum Datatype {
    Bytes,
    Uint8,
    Fp32,
}

impl Datatype {
    const ALL: [Self; 3] = [Self::Bytes, Self::Uint8, Self::Fp32];

    fn name(self) -> &'static str {
        match self {
            Self::Bytes => "BYTES",
            Self::Uint8 => "UINT8",
            Self::Fp32 => "FP32",
        }
    }
}

impl Expected {
    fn datatypes(&self) -> &'static [Datatype] {
        match (self.form, self.normalization) {
            (Form::Encoded, _) => &[Datatype::Bytes],
            (Form::Tensor, None) => &[Datatype::Uint8],
            (Form::Tensor, Some(_)) => &[Datatype::Uint8, Datatype::Fp32],
        }
    }

    /// The dimensions of one image.
    fn dimensions(&self, datatype: Datatype) -> Vec<i64> {
        let [height, width] = [self.geometry.height, self.geometry.width].map(i64::from);
        match datatype {
            Datatype::Bytes => vec![1],
            Datatype::Uint8 => vec![height, width, 3],
            Datatype::Fp32 => vec![3, height, width],
        }
    }

    fn describe(&self, datatype: Datatype) -> String {
        let dimensions: String = self
            .dimensions(datatype)
            .iter()
            .map(|dimension| format!(", {dimension}"))
            .collect();
        format!("{} [N{dimensions}]", datatype.name())
    }
}

/// The images of a request, in their order.
///
/// # Errors
/// When the tensor is wrong; nothing has been allocated for it then.
pub fn images(request: ModelInferRequest, expected: &Expected) -> Result<Vec<Source>, TensorError> {
    let ModelInferRequest {
        inputs,
        raw_input_contents,
        ..
    } = request;
    let [input]: [InferInputTensor; 1] = inputs
        .try_into()
        .map_err(|inputs: Vec<_>| TensorError::Inputs(inputs.len()))?;
    let InferInputTensor {
        name,
        datatype,
        shape,
        parameters,
        contents,
    } = input;
    if name != IMAGES {
        return Err(TensorError::UnknownInput(name));
    }
    if parameters.contains_key(SHARED_MEMORY) {
        return Err(TensorError::SharedMemory);
    }
    let known = |known: &Datatype| known.name() == datatype && expected.datatypes().contains(known);
    let Some(datatype) = Datatype::ALL.into_iter().find(known) else {
        let all: Vec<_> = expected
            .datatypes()
            .iter()
            .map(|datatype| expected.describe(*datatype))
            .collect();
        return Err(TensorError::Datatype {
            got: datatype,
            expected: all.join(" or "),
        });
    };
    let tensor = Tensor {
        datatype,
        n: count(&shape, datatype, expected)?,
        shape,
    };
    match (data(raw_input_contents, contents)?, datatype) {
        (Data::Raw(raw), Datatype::Bytes) => tensor.files(raw),
        (Data::Typed(contents), Datatype::Bytes) => tensor.typed_files(contents),
        (Data::Raw(raw), _) => tensor.crops(raw, expected),
        (Data::Typed(contents), _) => tensor.crops(tensor.to_raw(contents, expected)?, expected),
    }
}

/// The number of images in a tensor of this shape.
fn count(shape: &[i64], datatype: Datatype, expected: &Expected) -> Result<usize, TensorError> {
    // A dimension of 1 may as well be left out.
    let fits = |rest: &[i64]| {
        rest == expected.dimensions(datatype) || (datatype == Datatype::Bytes && rest.is_empty())
    };
    match shape {
        [n, rest @ ..] if (1..=MAX_IMAGES as i64).contains(n) && fits(rest) => Ok(*n as usize),
        _ => Err(TensorError::Shape {
            got: shape.to_vec(),
            expected: expected.describe(datatype),
        }),
    }
}

enum Data {
    Raw(Bytes),
    Typed(InferTensorContents),
}

/// Either the raw or the typed contents.
fn data(mut raw: Vec<Bytes>, contents: Option<InferTensorContents>) -> Result<Data, TensorError> {
    let contents = contents.filter(|contents| *contents != InferTensorContents::default());
    match (raw.len(), contents) {
        (0, None) => Err(TensorError::NoData),
        (0, Some(contents)) => Ok(Data::Typed(contents)),
        (_, Some(_)) => Err(TensorError::DuplicateData),
        (1, None) => Ok(Data::Raw(raw.remove(0))),
        (several, None) => Err(TensorError::RawContents(several)),
    }
}

/// A tensor whose type and shape are right.
struct Tensor {
    datatype: Datatype,
    shape: Vec<i64>,
    n: usize,
}

impl Tensor {
    /// Checks the number of bytes or elements.
    fn check_size(
        &self,
        unit: &'static str,
        expected: usize,
        got: usize,
    ) -> Result<(), TensorError> {
        if got == expected {
            return Ok(());
        }
        Err(TensorError::Size {
            datatype: self.datatype.name(),
            shape: self.shape.clone(),
            unit,
            expected,
            got,
        })
    }

    /// Files one after the other, each after its length.
    fn files(&self, mut raw: Bytes) -> Result<Vec<Source>, TensorError> {
        let mut files = Vec::with_capacity(self.n);
        for image in 1..=self.n {
            let truncated = || TensorError::Truncated { image, of: self.n };
            let length = raw
                .first_chunk()
                .map(|bytes| u32::from_le_bytes(*bytes) as usize)
                .ok_or_else(truncated)?;
            let mut file = raw.split_off(size_of::<u32>());
            if length > file.len() {
                return Err(truncated());
            }
            raw = file.split_off(length);
            files.push(Source::Encoded(file));
        }
        if raw.is_empty() {
            Ok(files)
        } else {
            Err(TensorError::TrailingBytes(raw.len()))
        }
    }

    fn typed_files(&self, contents: InferTensorContents) -> Result<Vec<Source>, TensorError> {
        let files = contents.bytes_contents;
        self.check_size("bytes_contents", self.n, files.len())?;
        Ok(files.into_iter().map(Source::Encoded).collect())
    }

    /// Crops one after the other.
    fn crops(&self, mut raw: Bytes, expected: &Expected) -> Result<Vec<Source>, TensorError> {
        let values = expected.geometry.bytes();
        let bytes = if self.datatype == Datatype::Fp32 {
            values * size_of::<f32>()
        } else {
            values
        };
        self.check_size("bytes", self.n * bytes, raw.len())?;
        let crop = |data| match (self.datatype, expected.normalization) {
            (Datatype::Fp32, Some(Normalization { mean, std })) => Crop::Normalized {
                values: data,
                mean,
                std,
            },
            _ => Crop::Pixels(data),
        };
        Ok((0..self.n)
            .map(|_| Source::Crop(crop(raw.split_to(bytes))))
            .collect())
    }

    /// Typed elements in the form in which they would be sent raw.
    fn to_raw(
        &self,
        contents: InferTensorContents,
        expected: &Expected,
    ) -> Result<Bytes, TensorError> {
        let elements = self.n * expected.geometry.bytes();
        if self.datatype == Datatype::Fp32 {
            self.check_size("fp32_contents", elements, contents.fp32_contents.len())?;
            let mut raw = BytesMut::with_capacity(elements * size_of::<f32>());
            for value in &contents.fp32_contents {
                raw.put_f32_le(*value);
            }
            return Ok(raw.freeze());
        }
        self.check_size("uint_contents", elements, contents.uint_contents.len())?;
        let byte =
            |value: u32| u8::try_from(value).map_err(|_| TensorError::ValueOutOfRange(value));
        contents
            .uint_contents
            .into_iter()
            .map(byte)
            .collect::<Result<Vec<u8>, _>>()
            .map(Bytes::from)
    }
}

#[cfg(test)]
mod tests;
