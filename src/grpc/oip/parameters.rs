//! Reading the parameters of requests and outputs.

use std::collections::HashMap;

use crate::inference::{InferParameter, infer_parameter::ParameterChoice};

/// A parameter's value is not valid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the parameter `{name}` is {got}; it must be a whole number, {least} or more")]
pub struct WrongParameter {
    name: &'static str,
    got: String,
    least: u64,
}

/// A whole number; `None` where the parameter is absent.
pub(super) fn integer(
    parameters: &HashMap<String, InferParameter>,
    name: &'static str,
    least: u64,
) -> Result<Option<u64>, WrongParameter> {
    let Some(parameter) = parameters.get(name) else {
        return Ok(None);
    };
    let wrong = |got: String| WrongParameter { name, got, least };
    let (number, got) = match &parameter.parameter_choice {
        Some(ParameterChoice::Int64Param(number)) => {
            (u64::try_from(*number).ok(), number.to_string())
        }
        Some(ParameterChoice::Uint64Param(number)) => (Some(*number), number.to_string()),
        Some(ParameterChoice::BoolParam(value)) => (None, value.to_string()),
        Some(ParameterChoice::DoubleParam(value)) => (None, value.to_string()),
        Some(ParameterChoice::StringParam(text)) => (
            None,
            format!("{:?}", text.chars().take(50).collect::<String>()),
        ),
        None => (None, "not set".into()),
    };
    number
        .filter(|number| *number >= least)
        .map(Some)
        .ok_or_else(|| wrong(got))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_numbers_are_taken() {
        let read = |choice| {
            let parameter = InferParameter {
                parameter_choice: choice,
            };
            integer(
                &HashMap::from([("timeout".to_owned(), parameter)]),
                "timeout",
                1,
            )
            .map_err(|error| error.to_string())
        };
        assert_eq!(integer(&HashMap::new(), "timeout", 1), Ok(None));
        assert_eq!(read(Some(ParameterChoice::Int64Param(5))), Ok(Some(5)));
        assert_eq!(
            read(Some(ParameterChoice::Uint64Param(u64::MAX))),
            Ok(Some(u64::MAX))
        );
        for wrong in [
            None,
            Some(ParameterChoice::Int64Param(-1)),
            Some(ParameterChoice::Uint64Param(0)),
            Some(ParameterChoice::StringParam("5".into())),
            Some(ParameterChoice::DoubleParam(5.0)),
        ] {
            assert!(read(wrong).unwrap_err().contains("`timeout`"));
        }
    }
}
