//! The value of a flag that names a second engine: `ENGINE[:PRECISION]`.

use std::{fmt::Display, str::FromStr};

use clap::ValueEnum;

use crate::engine::{EngineConfig, EngineKind, Precision};

/// An engine, and optionally its precision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineChoice {
    kind: EngineKind,
    precision: Option<Precision>,
}

impl EngineChoice {
    /// The same configuration for this engine.
    pub fn apply(self, config: EngineConfig) -> EngineConfig {
        EngineConfig {
            kind: Some(self.kind),
            precision: self.precision,
            ..config
        }
    }
}

impl FromStr for EngineChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, precision) = match text.split_once(':') {
            Some((kind, precision)) => (kind, Some(precision)),
            None => (text, None),
        };
        Ok(Self {
            kind: find(kind, "engine")?,
            precision: precision
                .map(|precision| find(precision, "precision"))
                .transpose()?,
        })
    }
}

/// Finds the value with this name; `what` describes the type in the error message.
fn find<T: ValueEnum + Display>(name: &str, what: &str) -> Result<T, String> {
    T::from_str(name, false).map_err(|_| {
        let names: Vec<String> = T::value_variants().iter().map(T::to_string).collect();
        format!("there is no {what} `{name}`; choose {}", names.join(", "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engine_may_have_a_precision() {
        let parse = |text: &str| {
            text.parse::<EngineChoice>()
                .map(|choice| (choice.kind, choice.precision))
        };
        assert_eq!(parse("embedded"), Ok((EngineKind::Embedded, None)));
        assert_eq!(
            parse("openvino:fp32"),
            Ok((EngineKind::OpenVino, Some(Precision::Fp32)))
        );
        assert!(parse("magic").unwrap_err().contains("embedded"));
        assert!(parse("openvino:fp8").unwrap_err().contains("bf16"));
    }
}
