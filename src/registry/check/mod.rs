//! Tries a model in a process of its own before the server loads it.
//!
//! A library may crash on a damaged or hostile file, compute without end or take all memory. In the
//! child that is a reason why the model is not served; in the server it would be the server's end.
//! `child` is what runs there, `passed` remembers the files that need not be tried again.

mod child;
mod passed;

use std::{
    ffi::OsString,
    io::{self, Read},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

pub use self::{
    child::{Answer, Refusal, Report, answer, confine},
    passed::Passed,
};
use super::loader::{ListedModel, LoadError};
use crate::model::ModelError;

/// The most that is read of a child's answer, in bytes.
const LARGEST_ANSWER: u64 = 1 << 20;
/// How much of the end of a child's standard error is kept, in bytes.
const KEPT_ERRORS: usize = 4 << 10;
/// The longest line of it that becomes part of a message, in characters.
const LONGEST_LINE: usize = 300;
/// How often the parent looks whether its child has ended.
const POLL: Duration = Duration::from_millis(5);

/// What a check may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckLimits {
    /// Memory that the process allocates, in bytes.
    pub memory: u64,
    /// Time until it has ended.
    pub timeout: Duration,
}

/// How models are tried.
#[derive(Clone, Debug)]
pub struct CheckConfig {
    /// The program `resnet18`.
    pub program: PathBuf,
    /// Its arguments before the path of the model: `check` and flags, among them those of the
    /// engine that is going to run the model.
    pub arguments: Vec<OsString>,
    /// What a check may take. The arguments name the same limits.
    pub limits: CheckLimits,
    /// The files that are not tried again.
    pub passed: Passed,
}

/// Why a model did not pass.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// The model can't be served; loading it said so.
    #[error("{}", .0.reason)]
    Refused(Refusal),
    /// A signal ended the process.
    #[error("loading it crashed the check with {signal}{}", in_brackets(.last_line))]
    Crashed {
        /// Its name, such as `SIGSEGV`.
        signal: String,
        /// The last line that the process wrote to standard error.
        last_line: String,
    },
    /// The process ended by itself and without an answer.
    #[error("loading it ended the check without an answer ({status}){}", in_brackets(.last_line))]
    Ended {
        /// How it ended.
        status: ExitStatus,
        /// The last line that the process wrote to standard error.
        last_line: String,
    },
    /// The process had to be ended.
    #[error("loading it takes longer than {0:?}, the limit of --model-timeout")]
    TimedOut(Duration),
    /// An allocation was refused.
    #[error("loading it takes more than {} MiB of memory, the limit of --model-memory", .0 >> 20)]
    Memory(u64),
    /// Somebody else ended the process.
    #[error("the check was killed, as the system does when memory is short")]
    Killed,
    /// Another file was tried than is to be loaded.
    #[error("its file changes again and again while it is checked")]
    Changed,
    /// The process can't be started.
    #[error("the check can't be started: {0}")]
    NotStarted(#[source] io::Error),
}

fn in_brackets(words: &str) -> String {
    match words {
        "" => String::new(),
        words => format!(" ({words})"),
    }
}

impl CheckError {
    /// The message for callers, which contains neither paths nor what libraries print.
    pub fn for_callers(&self) -> String {
        match self {
            Self::Refused(refusal) => refusal.for_callers.clone(),
            Self::Crashed { signal, .. } => {
                format!("loading it crashed the check with {signal}")
            }
            Self::Ended { .. } => "loading it ended the check without an answer".into(),
            Self::NotStarted(_) => "the check can't be started".into(),
            other => other.to_string(),
        }
    }

    /// Whether the engine that was asked for can't run any model here.
    pub fn is_unavailable(&self) -> bool {
        matches!(self, Self::Refused(refusal) if refusal.unavailable)
    }
}

impl CheckConfig {
    /// Tries the model in a child process, unless its files have passed before. Blocks until that
    /// is done.
    ///
    /// Returns the version that passed; another one must not be loaded. `None` means that nothing
    /// was tried, because no process can be started here.
    ///
    /// # Errors
    /// If the model's file can't be read, or the model does not pass.
    pub fn check(&self, model: &ListedModel, path: &Path) -> Result<Option<String>, LoadError> {
        let identity = self.passed.identify(self, model, path).map_err(|reason| {
            LoadError::Model(ModelError::File {
                path: path.to_owned(),
                source: Box::new(ModelError::Read(reason.into())),
            })
        })?;
        if self.passed.contains(&identity) {
            return Ok(Some(identity.version));
        }

        let started = Instant::now();
        match self.run(path) {
            Ok(report) if report.version != identity.version => Err(CheckError::Changed.into()),
            Ok(report) => {
                tracing::debug!(
                    model = model.name,
                    "checked in a process of its own in {:.0?}",
                    started.elapsed()
                );
                self.passed.insert(&identity, &report);
                Ok(Some(identity.version))
            }
            Err(CheckError::NotStarted(error)) => {
                tracing::warn!(
                    model = model.name,
                    "{}; loading the model unchecked",
                    CheckError::NotStarted(error)
                );
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Records a model as checked that this program itself has just written, from a checked base and
    /// without foreign content. `version` identifies the file that was written; any other file at
    /// `path` is checked as usual.
    pub fn mark_checked(&self, model: &ListedModel, path: &Path, version: &str) {
        match self.passed.identify(self, model, path) {
            Ok(identity) if identity.version == version => self.passed.remember(&identity),
            // Loading it says what is wrong.
            Ok(_) | Err(_) => {}
        }
    }

    /// Tries the model at `path` in a child process. Blocks until that has ended.
    ///
    /// # Errors
    /// If the process can't be started, or the model does not pass.
    pub fn run(&self, path: &Path) -> Result<Report, CheckError> {
        let mut command = Command::new(&self.program);
        command
            .args(&self.arguments)
            .args(["--parent", &std::process::id().to_string()])
            .arg("--")
            .arg(path)
            // A backtrace would push the reason out of what is kept of standard error.
            .env("RUST_BACKTRACE", "0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        #[cfg(unix)]
        // A Ctrl-C in the server's terminal is not for the check, which ends with the server.
        std::os::unix::process::CommandExt::process_group(&mut command, 0);

        let mut child = Running(command.spawn().map_err(CheckError::NotStarted)?);
        let answer = child.0.stdout.take();
        let errors = child.0.stderr.take();
        let (status, answer, errors) = thread::scope(|scope| {
            let answer = scope.spawn(|| answer.map(beginning).unwrap_or_default());
            let errors = scope.spawn(|| errors.map(end).unwrap_or_default());
            // Once the child has ended, so have its pipes.
            let status = child.wait(self.limits.timeout);
            (
                status,
                answer.join().unwrap_or_default(),
                errors.join().unwrap_or_default(),
            )
        });
        let Some(status) = status.map_err(CheckError::NotStarted)? else {
            return Err(CheckError::TimedOut(self.limits.timeout));
        };
        self.judge(status, &answer, &errors)
    }

    /// What an ended child means.
    fn judge(
        &self,
        status: ExitStatus,
        answer: &[u8],
        errors: &[u8],
    ) -> Result<Report, CheckError> {
        let errors = String::from_utf8_lossy(errors);
        let last_line = last_line(&errors);
        // Libraries may have written to standard output as well, but before the answer.
        let last = answer.trim_ascii_end().rsplit(|&byte| byte == b'\n').next();
        match serde_json::from_slice(last.unwrap_or_default()) {
            Ok(Answer::Passed(report)) if status.success() => return Ok(report),
            // How Rust and C++ say that an allocation failed.
            Ok(Answer::Refused(refusal)) if !ran_out_of_memory(&refusal.reason) => {
                return Err(CheckError::Refused(refusal));
            }
            Ok(Answer::Refused(_)) => return Err(CheckError::Memory(self.limits.memory)),
            _ => {}
        }
        if ran_out_of_memory(&errors) {
            return Err(CheckError::Memory(self.limits.memory));
        }
        Err(match signal_of(status) {
            Some(signal) if signal == "SIGKILL" => CheckError::Killed,
            Some(signal) if signal == "SIGXCPU" => CheckError::TimedOut(self.limits.timeout),
            Some(signal) => CheckError::Crashed { signal, last_line },
            None => CheckError::Ended { status, last_line },
        })
    }
}

/// Whether a message says that an allocation failed, as Rust and C++ do.
fn ran_out_of_memory(text: &str) -> bool {
    [
        "memory allocation of",
        "bad_alloc",
        "bad allocation",
        "Cannot allocate memory",
    ]
    .iter()
    .any(|words| text.contains(words))
}

/// The last line that is not empty, shortened.
fn last_line(text: &str) -> String {
    let mut lines = text.lines().rev().map(str::trim);
    let line = lines.find(|line| !line.is_empty()).unwrap_or_default();
    line.chars().take(LONGEST_LINE).collect()
}

/// The name of the signal that ended a process.
#[cfg(unix)]
fn signal_of(status: ExitStatus) -> Option<String> {
    let signal = std::os::unix::process::ExitStatusExt::signal(&status)?;
    let name = match signal {
        libc::SIGABRT => "SIGABRT",
        libc::SIGBUS => "SIGBUS",
        libc::SIGFPE => "SIGFPE",
        libc::SIGILL => "SIGILL",
        libc::SIGKILL => "SIGKILL",
        libc::SIGSEGV => "SIGSEGV",
        libc::SIGSYS => "SIGSYS",
        libc::SIGTERM => "SIGTERM",
        libc::SIGTRAP => "SIGTRAP",
        libc::SIGXCPU => "SIGXCPU",
        other => return Some(format!("signal {other}")),
    };
    Some(name.to_owned())
}

#[cfg(not(unix))]
fn signal_of(_: ExitStatus) -> Option<String> {
    None
}

/// A child that is killed when it is dropped.
struct Running(Child);

impl Running {
    /// Waits for the end of the child; kills it after `timeout`, and returns `None`.
    fn wait(&mut self, timeout: Duration) -> io::Result<Option<ExitStatus>> {
        let started = Instant::now();
        loop {
            if let Some(status) = self.0.try_wait()? {
                return Ok(Some(status));
            }
            if started.elapsed() >= timeout {
                let _ = self.0.kill();
                self.0.wait()?;
                return Ok(None);
            }
            thread::sleep(POLL);
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail for a child that has been waited for.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The first bytes that a child writes. The rest is read as well, so that it is not held up.
fn beginning(mut pipe: impl Read) -> Vec<u8> {
    let mut kept = Vec::new();
    let _ = pipe.by_ref().take(LARGEST_ANSWER).read_to_end(&mut kept);
    let _ = io::copy(&mut pipe, &mut io::sink());
    kept
}

/// The last bytes that a child writes.
fn end(mut pipe: impl Read) -> Vec<u8> {
    let mut kept = Vec::new();
    let mut chunk = [0; KEPT_ERRORS];
    while let Ok(bytes @ 1..) = pipe.read(&mut chunk) {
        kept.extend_from_slice(&chunk[..bytes]);
        kept.drain(..kept.len().saturating_sub(KEPT_ERRORS));
    }
    kept
}

#[cfg(all(test, unix))]
mod tests {
    use std::fs;

    use super::*;
    use crate::engine::EngineKind;

    /// A check whose child is this script of a shell, with the model's path as `$2`.
    fn script(text: &str) -> CheckConfig {
        CheckConfig {
            program: "/bin/sh".into(),
            arguments: ["-c", text].map(OsString::from).into(),
            limits: CheckLimits {
                memory: 64 << 20,
                timeout: Duration::from_secs(20),
            },
            passed: Passed::in_memory(EngineKind::Embedded.name()),
        }
    }

    fn reason(text: &str) -> String {
        let error = script(text).run(Path::new("m.onnx")).unwrap_err();
        error.to_string()
    }

    fn report(version: &str) -> String {
        let report = Report {
            name: "m".into(),
            version: version.into(),
            classes: 3,
            engine: "embedded".into(),
            engine_version: "1".into(),
            precision: "fp32".into(),
            warnings: Vec::new(),
        };
        let answer = serde_json::to_string(&Answer::Passed(report)).unwrap();
        format!("echo '{answer}'")
    }

    #[test]
    fn the_end_of_the_child_becomes_a_reason() {
        assert_eq!(
            reason("echo one >&2; echo its last words >&2; kill -SEGV $$"),
            "loading it crashed the check with SIGSEGV (its last words)"
        );
        assert!(reason("kill -BUS $$").ends_with("with SIGBUS"));
        assert!(reason("kill -KILL $$").contains("memory is short"));
        assert!(reason("kill -XCPU $$").contains("--model-timeout"));
        assert!(reason("exit 7").contains("without an answer"));
        assert!(reason("echo 'no JSON'").contains("without an answer"));
        assert!(
            reason("echo 'memory allocation of 9 bytes failed' >&2; kill -ABRT $$")
                .contains("more than 64 MiB of memory, the limit of --model-memory")
        );
        let crash = script("echo /secret >&2; kill -ABRT $$");
        let error = crash.run(Path::new("m.onnx")).unwrap_err();
        assert_eq!(
            error.for_callers(),
            "loading it crashed the check with SIGABRT"
        );
    }

    #[test]
    fn answers_are_read_and_refusals_kept_in_their_words() {
        let refusal = Answer::Refused(Refusal {
            reason: "/a/m.onnx: is bad".into(),
            for_callers: "is bad".into(),
            unavailable: false,
        });
        let refused = format!("echo '{}'", serde_json::to_string(&refusal).unwrap());
        let error = script(&refused).run(Path::new("m.onnx")).unwrap_err();
        assert_eq!(error.to_string(), "/a/m.onnx: is bad");
        assert_eq!(error.for_callers(), "is bad");

        let noisy = format!("echo noise; {}", report("1"));
        assert_eq!(
            script(&noisy).run(Path::new("m.onnx")).unwrap().version,
            "1"
        );
    }

    #[test]
    fn a_child_that_does_not_end_is_killed() {
        let mut endless = script("exec sleep 60");
        endless.limits.timeout = Duration::from_millis(50);
        let started = Instant::now();
        let error = endless.run(Path::new("m.onnx")).unwrap_err();
        assert!(matches!(error, CheckError::TimedOut(_)), "{error}");
        assert!(started.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn a_child_that_writes_without_end_is_read_within_bounds() {
        let wordy = "yes | head -c 3000000; yes | head -c 3000000 >&2; exit 1";
        assert!(reason(wordy).contains("(y)"));
    }

    #[test]
    fn what_has_passed_is_not_tried_again_until_it_changes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.onnx");
        let count = folder.path().join("count");
        fs::write(&path, "model").unwrap();
        let listed = ListedModel {
            name: "m".into(),
            path: Some(path.clone()),
            overrides: Default::default(),
        };
        let version = "9372c470eead"; // The beginning of the SHA-256 of `model`.
        let counting =
            |version: &str| format!("echo x >> {}; {}", count.display(), report(version));
        let check = script(&counting(version));
        let tries = || {
            fs::read_to_string(&count)
                .unwrap_or_default()
                .lines()
                .count()
        };

        for _ in 0..2 {
            let passed = check.check(&listed, &path).unwrap();
            assert_eq!(passed.as_deref(), Some(version));
            assert_eq!(tries(), 1);
        }
        fs::write(folder.path().join("m.labels.txt"), "a\nb").unwrap();
        check.check(&listed, &path).unwrap();
        assert_eq!(tries(), 2, "labels belong to the model");

        fs::write(&path, "another").unwrap();
        let error = check.check(&listed, &path).unwrap_err();
        assert!(error.to_string().contains("its file changes"), "{error}");
    }

    #[test]
    fn what_was_written_here_passes_as_it_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.onnx");
        fs::write(&path, "model").unwrap();
        let listed = ListedModel {
            name: "m".into(),
            path: Some(path.clone()),
            overrides: Default::default(),
        };
        let check = script("kill -SEGV $$");
        // Somebody else's file lies there by now.
        check.mark_checked(&listed, &path, "0123456789ab");
        assert!(check.check(&listed, &path).is_err());

        let version = "9372c470eead"; // The beginning of the SHA-256 of `model`.
        check.mark_checked(&listed, &path, version);
        let passed = check.check(&listed, &path).unwrap();
        assert_eq!(passed.as_deref(), Some(version));
        fs::write(&path, "another").unwrap();
        assert!(check.check(&listed, &path).is_err());
    }

    #[test]
    fn without_a_program_nothing_is_tried() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let listed = ListedModel {
            name: "m".into(),
            path: Some(file.path().to_owned()),
            overrides: Default::default(),
        };
        let check = CheckConfig {
            program: "/nonexistent/resnet18".into(),
            ..script("")
        };
        assert_eq!(check.check(&listed, file.path()).unwrap(), None);
    }
}
