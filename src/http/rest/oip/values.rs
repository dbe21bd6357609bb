//! Parts of an inference request in JSON, read within limits: a few bytes of JSON could otherwise
//! become hundreds in memory.

use std::{collections::HashMap, fmt, marker::PhantomData};

use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::BufMut;
use serde::{
    Deserialize, Deserializer,
    de::{self, DeserializeSeed, MapAccess, SeqAccess, Visitor},
};

use crate::inference::{InferParameter, infer_parameter::ParameterChoice};

/// The most parameters of a request, an input or an output.
const MAX_PARAMETERS: usize = 32;

/// A list of at most `N` items.
pub(super) struct Few<T, const N: usize>(pub Vec<T>);

impl<T, const N: usize> Default for Few<T, N> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>, const N: usize> Deserialize<'de> for Few<T, N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Items<T, const N: usize>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>, const N: usize> Visitor<'de> for Items<T, N> {
            type Value = Few<T, N>;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                write!(f, "a list of at most {N}")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
                let mut few = Vec::new();
                while let Some(item) = items.next_element()? {
                    if few.len() == N {
                        return Err(de::Error::invalid_length(N + 1, &self));
                    }
                    few.push(item);
                }
                Ok(Few(few))
            }
        }

        deserializer.deserialize_seq(Items(PhantomData))
    }
}

/// Parameters: booleans, numbers and text by name.
#[derive(Default)]
pub(super) struct Parameters(pub HashMap<String, InferParameter>);

impl Parameters {
    /// Takes a parameter out that is for REST only.
    pub fn take(&mut self, name: &str) -> Option<ParameterChoice> {
        self.0.remove(name)?.parameter_choice
    }

    /// Takes a boolean out.
    ///
    /// # Errors
    /// When it is something else.
    pub fn take_flag(&mut self, name: &str) -> Result<Option<bool>, String> {
        match self.take(name) {
            None => Ok(None),
            Some(ParameterChoice::BoolParam(value)) => Ok(Some(value)),
            Some(_) => Err(format!("the parameter `{name}` must be true or false")),
        }
    }
}

impl<'de> Deserialize<'de> for Parameters {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;

        impl<'de> Visitor<'de> for Entries {
            type Value = Parameters;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                write!(f, "an object of at most {MAX_PARAMETERS} parameters")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Parameters, A::Error> {
                let mut parameters = HashMap::new();
                while let Some((name, Parameter(value))) = map.next_entry::<String, _>()? {
                    if parameters.len() == MAX_PARAMETERS {
                        return Err(de::Error::invalid_length(MAX_PARAMETERS + 1, &self));
                    }
                    parameters.insert(name, value);
                }
                Ok(Parameters(parameters))
            }
        }

        deserializer.deserialize_map(Entries)
    }
}

struct Parameter(InferParameter);

impl<'de> Deserialize<'de> for Parameter {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Choice;

        impl Visitor<'_> for Choice {
            type Value = ParameterChoice;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a boolean, a number or text")
            }

            fn visit_bool<E>(self, value: bool) -> Result<ParameterChoice, E> {
                Ok(ParameterChoice::BoolParam(value))
            }

            fn visit_i64<E>(self, value: i64) -> Result<ParameterChoice, E> {
                Ok(ParameterChoice::Int64Param(value))
            }

            fn visit_u64<E>(self, value: u64) -> Result<ParameterChoice, E> {
                Ok(i64::try_from(value).map_or(
                    ParameterChoice::Uint64Param(value),
                    ParameterChoice::Int64Param,
                ))
            }

            fn visit_f64<E>(self, value: f64) -> Result<ParameterChoice, E> {
                Ok(ParameterChoice::DoubleParam(value))
            }

            fn visit_str<E>(self, text: &str) -> Result<ParameterChoice, E> {
                Ok(ParameterChoice::StringParam(text.into()))
            }
        }

        let choice = deserializer.deserialize_any(Choice)?;
        Ok(Self(InferParameter {
            parameter_choice: Some(choice),
        }))
    }
}

/// The types of elements that can be sent in JSON.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Element {
    /// Text: the bytes in base64, since an image is no text.
    Bytes,
    Uint8,
    Fp32,
}

impl Element {
    pub fn named(datatype: &str) -> Option<Self> {
        match datatype {
            "BYTES" => Some(Self::Bytes),
            "UINT8" => Some(Self::Uint8),
            "FP32" => Some(Self::Fp32),
            _ => None,
        }
    }

    /// The elements of a list, or of lists of lists, as they are sent in binary form.
    ///
    /// # Errors
    /// The first that is wrong.
    pub fn read(self, json: &str) -> Result<Vec<u8>, serde_json::Error> {
        let mut out = Vec::new();
        let elements = Elements {
            kind: self,
            out: &mut out,
        };
        elements.deserialize(&mut serde_json::Deserializer::from_str(json))?;
        Ok(out)
    }
}

/// Appends what it reads to `out`.
struct Elements<'a> {
    kind: Element,
    out: &'a mut Vec<u8>,
}

impl Elements<'_> {
    fn number<E: de::Error>(self, value: f64) -> Result<(), E> {
        match self.kind {
            Element::Fp32 => self.out.put_f32_le(value as f32),
            Element::Uint8 if (0.0..=255.0).contains(&value) && value.fract() == 0.0 => {
                self.out.push(value as u8);
            }
            _ => {
                return Err(de::Error::invalid_value(
                    de::Unexpected::Float(value),
                    &self,
                ));
            }
        }
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Elements<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Elements<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self.kind {
            Element::Bytes => "a list of files in base64",
            Element::Uint8 => "a list of numbers from 0 to 255",
            Element::Fp32 => "a list of numbers",
        })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        loop {
            let one = Elements {
                kind: self.kind,
                out: &mut *self.out,
            };
            if items.next_element_seed(one)?.is_none() {
                return Ok(());
            }
        }
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<(), E> {
        self.number(value as f64)
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<(), E> {
        self.number(value as f64)
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<(), E> {
        self.number(value)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<(), E> {
        if self.kind != Element::Bytes {
            return Err(de::Error::invalid_type(
                de::Unexpected::Other("text"),
                &self,
            ));
        }
        let start = self.out.len();
        self.out.put_u32_le(0);
        let decoded = BASE64_STANDARD.decode_vec(text, self.out);
        decoded.map_err(|error| de::Error::custom(format!("not base64: {error}")))?;
        let length = self.out.len() - start - size_of::<u32>();
        let length = u32::try_from(length).map_err(|_| de::Error::custom("too long a file"))?;
        self.out[start..start + size_of::<u32>()].copy_from_slice(&length.to_le_bytes());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_read_from_nested_lists() {
        let read = |kind: Element, json: &str| kind.read(json).map_err(|error| error.to_string());
        assert_eq!(
            read(Element::Uint8, "[[0, 255], [7.0]]"),
            Ok(vec![0, 255, 7])
        );
        assert_eq!(
            read(Element::Fp32, "[1, -2.5, 1e2]"),
            Ok([1.0f32, -2.5, 100.0].map(f32::to_le_bytes).concat())
        );
        assert_eq!(
            read(Element::Bytes, r#"["AAE=", ""]"#),
            Ok(vec![2, 0, 0, 0, 0, 1, 0, 0, 0, 0])
        );
        for (kind, json) in [
            (Element::Uint8, "[256]"),
            (Element::Uint8, "[-1]"),
            (Element::Uint8, "[0.5]"),
            (Element::Uint8, "[\"1\"]"),
            (Element::Fp32, "[true]"),
            (Element::Fp32, "[null]"),
            (Element::Fp32, "{}"),
            (Element::Bytes, "[1]"),
            (Element::Bytes, "[\"~\"]"),
            (Element::Fp32, &"[".repeat(100_000)),
        ] {
            assert!(read(kind, json).is_err(), "{json:.40}");
        }
    }

    #[test]
    fn lists_and_parameters_are_few() {
        let few = |json: &str| serde_json::from_str::<Few<i64, 3>>(json).map(|few| few.0);
        assert_eq!(few("[1, 2, 3]").unwrap(), [1, 2, 3]);
        assert!(
            few("[1, 2, 3, 4]")
                .unwrap_err()
                .to_string()
                .contains("at most 3")
        );
        let many: Vec<_> = (0..40).map(|i| format!("\"{i}\": 1")).collect();
        let many = format!("{{{}}}", many.join(","));
        assert!(serde_json::from_str::<Parameters>(&many).is_err());
        assert!(serde_json::from_str::<Parameters>(r#"{"a": [1]}"#).is_err());
        let mut read: Parameters =
            serde_json::from_str(r#"{"a": 1, "b": true, "c": "x", "d": 0.5}"#).unwrap();
        assert_eq!(read.take("a"), Some(ParameterChoice::Int64Param(1)));
        assert_eq!(read.take_flag("b"), Ok(Some(true)));
        assert!(read.take_flag("c").is_err());
        assert_eq!(read.take("d"), Some(ParameterChoice::DoubleParam(0.5)));
    }
}
