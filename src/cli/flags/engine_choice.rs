//! A second engine beside the one of the flags: `ENGINE[:PRECISION]`.

use std::str::FromStr;

use crate::engine::{EngineConfig, EngineKind, Precision};

const KINDS: [EngineKind; 3] = [
    EngineKind::TensorRt,
    EngineKind::OpenVino,
    EngineKind::Embedded,
];
const PRECISIONS: [Precision; 4] = [
    Precision::Fp32,
    Precision::Fp16,
    Precision::Bf16,
    Precision::Int8,
];

/// An engine, perhaps with its arithmetic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineChoice {
    kind: EngineKind,
    precision: Option<Precision>,
}

impl EngineChoice {
    /// `config` with this engine instead.
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
        let (kind, precision) = text
            .split_once(':')
            .map_or((text, None), |(kind, rest)| (kind, Some(rest)));
        let found = KINDS.into_iter().find(|known| known.to_string() == kind);
        let kind =
            found.ok_or_else(|| format!("there is no engine `{kind}`; choose {}", list(&KINDS)))?;
        let named = |name: &str| {
            let found = PRECISIONS
                .into_iter()
                .find(|known| known.to_string() == name);
            found.ok_or_else(|| {
                format!(
                    "there is no precision `{name}`; choose {}",
                    list(&PRECISIONS)
                )
            })
        };
        Ok(Self {
            kind,
            precision: precision.map(named).transpose()?,
        })
    }
}

fn list(choices: &[impl ToString]) -> String {
    choices
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(", ")
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
