//! Parsers for the values of flags.

use std::{
    iter,
    net::{SocketAddr, ToSocketAddrs},
    num::NonZeroUsize,
    time::Duration,
};

use clap::{
    ValueEnum,
    builder::{PossibleValue, PossibleValuesParser, Resettable, TypedValueParser},
};

use crate::proto::{Region, RegionUnit};

/// Parses a duration such as `300ms`, `10s`, `1.5m` or `2h`; `0` needs no unit.
pub fn duration(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    let unit_at = text
        .find(|c: char| c.is_ascii_alphabetic())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(unit_at);
    let seconds_a_unit = match unit {
        "ms" => 0.001,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        "" if number == "0" => 0.0,
        "" => return Err("a unit is missing: ms, s, m or h, as in 300ms or 10s".into()),
        _ => {
            return Err(format!(
                "`{unit}` is not a unit of time; use ms, s, m or h, as in 300ms or 10s"
            ));
        }
    };
    let number: f64 = number
        .trim()
        .parse()
        .map_err(|_| format!("`{number}` is not a number; write for example 300ms or 10s"))?;
    Duration::try_from_secs_f64(number * seconds_a_unit)
        .map_err(|_| format!("`{text}` is out of range"))
}

/// Parses a duration of more than zero.
pub fn positive_duration(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err("must be more than 0".into()),
        duration => Ok(duration),
    }
}

/// Parses a part of an image, `LEFT,TOP,WIDTH,HEIGHT` in pixels, or each of them in percent.
pub fn region(text: &str) -> Result<Region, String> {
    let wrong = || {
        "write LEFT,TOP,WIDTH,HEIGHT in pixels, as in 10,20,300,200, or in percent, as in \
         0%,0%,50%,100%"
            .to_owned()
    };
    let parts: Vec<&str> = text.split(',').map(str::trim).collect();
    let percent = parts.iter().filter(|part| part.ends_with('%')).count();
    let (unit, scale) = match percent {
        0 => (RegionUnit::Pixels, 1.0),
        4 => (RegionUnit::Fractions, 0.01),
        _ => return Err(wrong()),
    };
    let numbers: Vec<f64> = parts
        .iter()
        .map(|part| part.trim_end_matches('%').parse())
        .collect::<Result<_, _>>()
        .map_err(|_| wrong())?;
    let [left, top, width, height] = numbers[..] else {
        return Err(wrong());
    };
    Ok(Region {
        left: left * scale,
        top: top * scale,
        width: width * scale,
        height: height * scale,
        unit: unit.into(),
    })
}

/// Parses the permissions of a file in octal, such as `0660`.
pub fn file_mode(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text, 8) {
        Ok(mode @ 0..=0o777) => Ok(mode),
        _ => Err("must be permissions in octal, such as 0660".into()),
    }
}

/// Parses an address to listen on, `HOST:PORT`; a host name is resolved.
pub fn listen_address(text: &str) -> Result<SocketAddr, String> {
    if !text.contains(':') {
        return Err("a port is missing, as in 127.0.0.1:8001 or [::1]:8001".into());
    }
    let mut addresses = text
        .to_socket_addrs()
        .map_err(|error| format!("not HOST:PORT ({error})"))?;
    addresses
        .next()
        .ok_or_else(|| "the host name has no address".into())
}

/// Parses a probability from 0 to 1.
pub fn probability(text: &str) -> Result<f32, String> {
    match text.parse() {
        Ok(p) if (0.0..=1.0).contains(&p) => Ok(p),
        _ => Err("must be a number between 0 and 1".into()),
    }
}

/// Parses a fraction from 0 to 1.
pub fn fraction(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(fraction) if (0.0..=1.0).contains(&fraction) => Ok(fraction),
        _ => Err("must be a number from 0 (none) to 1 (all)".into()),
    }
}

/// Parses a rate in events per second.
pub fn rate(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(rate) if rate > 0.0 && rate <= 1e6 => Ok(rate),
        _ => Err("must be a number, more than 0 and at most 1000000".into()),
    }
}

/// Parses a finite number greater than 0.
pub fn positive(text: &str) -> Result<f32, String> {
    let number = text
        .parse()
        .ok()
        .filter(|number: &f32| number.is_finite() && *number > 0.0);
    number.ok_or_else(|| "must be a number, more than 0".into())
}

/// Parses a finite number of at least 0.
pub fn not_negative(text: &str) -> Result<f32, String> {
    let number = text
        .parse()
        .ok()
        .filter(|number: &f32| number.is_finite() && *number >= 0.0);
    number.ok_or_else(|| "must be a number, 0 or more".into())
}

/// Parses a whole number from 1 to 65,536.
pub fn count(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count) if (1..=65_536).contains(&count) => Ok(count),
        _ => Err("must be a whole number from 1 to 65536".into()),
    }
}

/// Parses a whole number from 1 to `MAX`.
pub fn at_most<const MAX: usize>(text: &str) -> Result<NonZeroUsize, String> {
    match text.parse::<NonZeroUsize>() {
        Ok(number) if number.get() <= MAX => Ok(number),
        _ => Err(format!("must be a whole number from 1 to {MAX}")),
    }
}

/// A parser for flags that take the values of `T`.
///
/// Unlike clap's own, it does not show the documentation of each value: that would turn the compact
/// help of a subcommand into its long form.
pub fn one_of<T>() -> impl TypedValueParser<Value = T>
where
    T: ValueEnum + Clone + Send + Sync + 'static,
{
    PossibleValuesParser::new(names::<T>()).map(|name| named(&name))
}

/// The value of a flag that takes either the values of `T` or a word that stands for none of them.
///
/// It has a name of its own because clap would take a plain `Option` to mean that the flag may be
/// absent.
pub type OrNone<T> = Option<T>;

/// A parser for flags that take the values of `T`, or `none`, such as `auto`.
pub fn or_none<T>(none: &'static str) -> impl TypedValueParser<Value = OrNone<T>>
where
    T: ValueEnum + Clone + Send + Sync + 'static,
{
    let names = iter::once(PossibleValue::new(none)).chain(names::<T>());
    PossibleValuesParser::new(names).map(move |name| {
        if name == none {
            None
        } else {
            Some(named(&name))
        }
    })
}

/// The names of the values of `T`, without their documentation.
fn names<T: ValueEnum + 'static>() -> impl Iterator<Item = PossibleValue> {
    T::value_variants()
        .iter()
        .filter_map(|value| Some(value.to_possible_value()?.help(Resettable::Reset)))
}

/// The value with this name, which the parser has accepted.
fn named<T: ValueEnum>(name: &str) -> T {
    T::from_str(name, false).expect("the parser only accepts names of the type")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_are_in_pixels_or_in_percent() {
        let found = region("10, 20.5,300,200").unwrap();
        assert_eq!((found.left, found.top, found.width), (10.0, 20.5, 300.0));
        assert_eq!(found.unit(), RegionUnit::Pixels);
        let found = region("0%,25%,50%,75%").unwrap();
        assert_eq!((found.top, found.width), (0.25, 0.5));
        assert_eq!(found.unit(), RegionUnit::Fractions);
        for wrong in [
            "",
            "1,2,3",
            "1,2,3,4,5",
            "0%,0%,50,50",
            "a,b,c,d",
            "1,2,3,%",
        ] {
            assert!(region(wrong).unwrap_err().contains("LEFT,TOP"), "{wrong}");
        }
    }
    use crate::engine::{EngineKind, Precision};

    #[test]
    fn durations_have_units() {
        for (text, milliseconds) in [
            ("300ms", 300),
            ("10s", 10_000),
            ("2m", 120_000),
            ("1.5s", 1500),
            ("1h", 3_600_000),
            ("0", 0),
            ("5 s", 5000),
        ] {
            assert_eq!(
                duration(text),
                Ok(Duration::from_millis(milliseconds)),
                "{text}"
            );
        }
        for text in [
            "",
            "5",
            "s",
            "-1s",
            "5 parsecs",
            "1e400s",
            "nans",
            "infs",
            "1s2",
        ] {
            assert!(duration(text).is_err(), "{text}");
        }
        assert!(positive_duration("0ms").is_err());
    }

    #[test]
    fn listen_addresses_are_numbers_or_names() {
        assert_eq!(
            listen_address("127.0.0.1:0"),
            Ok(([127, 0, 0, 1], 0).into())
        );
        assert!(listen_address("[::1]:8001").unwrap().is_ipv6());
        assert!(listen_address("localhost:8001").unwrap().ip().is_loopback());
        for (wrong, reason) in [
            ("8001", "port"),
            ("127.0.0.1:99999", "not HOST:PORT"),
            (":", "not HOST:PORT"),
        ] {
            let error = listen_address(wrong).unwrap_err();
            assert!(error.contains(reason), "{wrong}: {error}");
        }
    }

    #[test]
    fn numbers_stay_in_their_range() {
        assert_eq!(probability("0.25"), Ok(0.25));
        assert!(probability("NaN").is_err() && probability("-0.1").is_err());
        assert_eq!(fraction("0.01"), Ok(0.01));
        for wrong in ["1.01", "NaN", "1%"] {
            assert!(fraction(wrong).is_err(), "{wrong}");
        }
        assert_eq!(rate("29.97"), Ok(29.97));
        assert!(rate("0").is_err() && rate("inf").is_err() && rate("NaN").is_err());
        assert!(positive("0").is_err() && positive("inf").is_err() && positive("1e-3") == Ok(1e-3));
        assert!(
            not_negative("-1").is_err()
                && not_negative("NaN").is_err()
                && not_negative("0") == Ok(0.0)
        );
        assert_eq!(count("16"), Ok(16));
        assert!(count("0").is_err() && count("70000").is_err());
        assert_eq!(at_most::<64>("64").map(NonZeroUsize::get), Ok(64));
        assert!(at_most::<64>("65").is_err() && at_most::<64>("0").is_err());
    }

    #[test]
    fn a_word_stands_for_none_of_an_enums_values() {
        let flag = clap::Arg::new("precision").value_parser(or_none::<Precision>("auto"));
        let command = clap::Command::new("test").arg(flag);
        let parse = |value| {
            let matches = command.clone().try_get_matches_from(["test", value]);
            matches.map(|matches| {
                matches
                    .get_one::<OrNone<Precision>>("precision")
                    .copied()
                    .unwrap()
            })
        };
        assert_eq!(parse("auto").unwrap(), None);
        assert_eq!(parse("fp16").unwrap(), Some(Precision::Fp16));
        let error = parse("fp8").unwrap_err().to_string();
        assert!(error.contains("auto, fp32, fp16, bf16, int8"), "{error}");
        assert!(names::<EngineKind>().all(|value| value.get_help().is_none()));
    }
}
