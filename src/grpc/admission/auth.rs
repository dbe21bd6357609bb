//! Bearer tokens: a file of named tokens decides who may call.

use std::{collections::HashSet, path::PathBuf};

use http::HeaderMap;
use sha2::{Digest, Sha256};

use crate::{
    files,
    grpc::call::{caller::Caller, status::CallError},
    watch::Watched,
};

/// A shorter token could be guessed.
const MIN_TOKEN: usize = 16;
/// A longer token would not fit into the headers.
const MAX_TOKEN: usize = 4096;

/// Which callers need a token.
#[derive(Clone, Debug)]
pub struct TokenConfig {
    /// One `NAME TOKEN` on each line; empty lines and those that begin with `#` are ignored.
    pub file: PathBuf,
    /// Services that answer without a token.
    pub open: Vec<OpenService>,
}

/// A service that may be open to callers without a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum OpenService {
    /// `grpc.health.v1.Health`, for load balancers.
    Health,
    /// `grpc.reflection`, which describes the contract.
    Reflection,
}

impl OpenService {
    fn of(path: &str) -> Option<Self> {
        match path {
            path if path.starts_with("/grpc.health.") => Some(Self::Health),
            path if path.starts_with("/grpc.reflection.") => Some(Self::Reflection),
            _ => None,
        }
    }
}

/// The tokens that are accepted now. Only their hashes are kept.
pub(in crate::grpc) struct Tokens {
    known: Watched<Vec<Token>>,
    open: Vec<OpenService>,
}

struct Token {
    name: String,
    sha256: [u8; 32],
}

impl Tokens {
    /// Reads the file.
    ///
    /// # Errors
    /// What is wrong with the file; the message never contains a token.
    pub fn read(config: TokenConfig) -> Result<Self, String> {
        let TokenConfig { file, open } = config;
        let known = Watched::new("the tokens", vec![file.clone()], move || {
            let content = files::read_limited(&file, files::LARGEST_TEXT)
                .map_err(|error| error.to_string())?;
            str::from_utf8(&content)
                .map_err(|_| "is not UTF-8 text".to_owned())
                .and_then(parse)
                .map_err(|error| format!("{}: {error}", file.display()))
        })?;
        Ok(Self { known, open })
    }

    /// The caller's name; `None` for an open service.
    ///
    /// # Errors
    /// [`CallError::NoToken`] or [`CallError::WrongToken`].
    pub fn check(&self, path: &str, headers: &HeaderMap) -> Result<Option<Caller>, CallError> {
        if OpenService::of(path).is_some_and(|service| self.open.contains(&service)) {
            return Ok(None);
        }
        let given = headers
            .get(http::header::AUTHORIZATION)
            .map(http::HeaderValue::as_bytes);
        let Some(token) = given.and_then(bearer) else {
            return Err(CallError::NoToken);
        };
        let given: [u8; 32] = Sha256::digest(token).into();
        let known = self.known.get();
        // Every hash is compared in full, so that the time taken reveals nothing.
        let found = known.iter().fold(None, |found, token| {
            if same(&token.sha256, &given) {
                Some(token)
            } else {
                found
            }
        });
        match found {
            Some(token) => Ok(Some(Caller(token.name.clone()))),
            None => Err(CallError::WrongToken),
        }
    }

    /// Reads the file again if it has changed. Blocks on the file system.
    pub fn refresh(&self) {
        self.known.refresh();
    }
}

fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = value.split_at_checked(7)?;
    scheme
        .eq_ignore_ascii_case(b"bearer ")
        .then(|| token.trim_ascii())
}

fn same(a: &[u8; 32], b: &[u8; 32]) -> bool {
    a.iter()
        .zip(b)
        .fold(0, |different, (a, b)| different | (a ^ b))
        == 0
}

fn parse(text: &str) -> Result<Vec<Token>, String> {
    let mut tokens = Vec::new();
    let (mut names, mut hashes) = (HashSet::new(), HashSet::new());
    for (i, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let wrong = |reason: &str| format!("line {}: {reason}", i + 1);
        let (name, token) = line
            .split_once(char::is_whitespace)
            .ok_or_else(|| wrong("expected NAME TOKEN"))?;
        let token = token.trim();
        if !(MIN_TOKEN..=MAX_TOKEN).contains(&token.len())
            || !token.bytes().all(|byte| byte.is_ascii_graphic())
        {
            return Err(wrong(&format!(
                "a token is {MIN_TOKEN} to {MAX_TOKEN} letters, digits and signs; \
                 `openssl rand -hex 32` makes one"
            )));
        }
        let sha256: [u8; 32] = Sha256::digest(token).into();
        if !names.insert(name.to_owned()) || !hashes.insert(sha256) {
            return Err(wrong("this name or token is on an earlier line too"));
        }
        tokens.push(Token {
            name: name.to_owned(),
            sha256,
        });
    }
    if tokens.is_empty() {
        return Err("it has no token; write one NAME TOKEN on each line".into());
    }
    Ok(tokens)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const FILE: &str = "# callers\n\nshop  0123456789abcdef\ncamera\tfedcba9876543210\n";

    fn tokens(open: &[OpenService]) -> (Tokens, tempfile::NamedTempFile) {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), FILE).unwrap();
        (
            Tokens::read(TokenConfig {
                file: file.path().into(),
                open: open.to_vec(),
            })
            .unwrap(),
            file,
        )
    }

    fn check(
        tokens: &Tokens,
        path: &str,
        authorization: Option<&str>,
    ) -> Result<Option<String>, String> {
        let mut headers = HeaderMap::new();
        if let Some(value) = authorization {
            headers.insert("authorization", value.parse().unwrap());
        }
        let caller = tokens
            .check(path, &headers)
            .map_err(|error| error.to_string())?;
        Ok(caller.map(|caller| caller.0))
    }

    #[test]
    fn callers_are_known_by_their_tokens() {
        let (tokens, _file) = tokens(&[]);
        assert_eq!(
            check(&tokens, "/x", Some("Bearer 0123456789abcdef")),
            Ok(Some("shop".into()))
        );
        assert_eq!(
            check(&tokens, "/x", Some("bearer fedcba9876543210 ")),
            Ok(Some("camera".into()))
        );
        for wrong in [
            "Bearer 0123456789abcdeF",
            "Bearer 0123456789abcde",
            "Bearer ",
            "Basic 0123456789abcdef",
            "",
        ] {
            let error = check(&tokens, "/x", Some(wrong)).unwrap_err();
            assert!(
                error.contains("token") && !error.contains("0123"),
                "{wrong}: {error}"
            );
        }
        assert!(
            check(&tokens, "/x", None)
                .unwrap_err()
                .contains("authorization: Bearer")
        );
    }

    #[test]
    fn open_services_need_none() {
        let (tokens, _file) = tokens(&[OpenService::Health]);
        assert_eq!(
            check(&tokens, "/grpc.health.v1.Health/Check", None),
            Ok(None)
        );
        assert!(
            check(
                &tokens,
                "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
                None
            )
            .is_err()
        );
        assert!(check(&tokens, "/resnet18.v1.Classifier/Classify", None).is_err());
    }

    #[test]
    fn wrong_files_are_told_without_a_word_of_any_token() {
        for (text, reason) in [
            ("", "no token"),
            ("shop", "line 1: expected NAME TOKEN"),
            ("shop short-secret", "line 1: a token is 16"),
            (
                "a 0123456789abcdef\nb 0123456789abcdef",
                "line 2: this name or token",
            ),
            (
                "a 0123456789abcdef\na fedcba9876543210",
                "line 2: this name or token",
            ),
        ] {
            let error = parse(text).err().unwrap();
            assert!(
                error.contains(reason) && !error.contains("secret") && !error.contains("0123"),
                "{text}: {error}"
            );
        }
    }
}
