//! A file system that never answers, as a network mount whose server is gone.

use std::{
    ffi::CString,
    fs::{self, File},
    os::{fd::AsRawFd, unix::fs::symlink},
    path::Path,
    process::Stdio,
};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use super::{classify, problem, serve};
use crate::common::{resnet18, text, tiny_model::tiny_model};

/// A FUSE mount that nobody serves: every call on it waits until the mount goes.
struct DeadMount {
    folder: tempfile::TempDir,
    /// Closing it makes the calls that wait fail.
    device: Option<File>,
}

impl DeadMount {
    /// `None`, with a visible word, where this process may not mount.
    fn new() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let mounted = File::options()
            .read(true)
            .write(true)
            .open("/dev/fuse")
            .and_then(|device| {
                let options = format!(
                    "fd={},rootmode=40000,user_id=0,group_id=0",
                    device.as_raw_fd()
                );
                let options = CString::new(options).unwrap();
                mount(
                    "dead",
                    folder.path(),
                    "fuse",
                    MountFlags::empty(),
                    &*options,
                )?;
                Ok(device)
            });
        match mounted {
            Ok(device) => Some(Self {
                folder,
                device: Some(device),
            }),
            Err(error) => {
                println!("SKIPPED: a dead mount can't be made: {error}");
                None
            }
        }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for DeadMount {
    fn drop(&mut self) {
        drop(self.device.take());
        unmount(self.folder.path(), UnmountFlags::DETACH).expect("the mount can be removed");
    }
}

#[tokio::test]
async fn a_mount_that_does_not_answer_holds_up_nothing() {
    let Some(mount) = DeadMount::new() else {
        return;
    };
    // A model that was asked for by name: the start ends with the reason.
    let alone = resnet18()
        .args(["serve", "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0"])
        .arg("--model")
        .arg(mount.path().join("guest.onnx"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();

    // One of several in a folder: it gets the reason, and the others are served.
    let (folder, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::write(folder.path().join("good.onnx"), tiny_model(1)).unwrap();
    symlink(
        mount.path().join("model.onnx"),
        folder.path().join("stuck.onnx"),
    )
    .unwrap();
    let server = serve(folder.path(), cache.path(), &[]);
    classify(&server, "good", None).await.unwrap();
    let problem = problem(&server, "stuck").await;
    assert!(problem.contains("has not answered for 15s"), "{problem}");

    let output = alone.wait_with_output().unwrap();
    let errors = text(&output.stderr);
    assert!(!output.status.success());
    for part in ["guest.onnx", "the file system has not answered for 15s"] {
        assert!(errors.contains(part), "{errors}");
    }
}
