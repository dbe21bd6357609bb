//! A random operator, who adds, replaces, breaks and removes models while they are served, and
//! sends SIGHUP.

use std::{fs, path::Path, time::Instant};

use super::{
    Random,
    common::{Server, tiny_model::tiny_model},
};

/// Changes models until `until`, and leaves a working set of them.
pub async fn run(server: &Server, folder: &Path, mut random: Random, until: Instant) {
    let put = |name: &str, content: &[u8]| {
        let unfinished = folder.join("unfinished");
        fs::write(&unfinished, content).unwrap();
        fs::rename(unfinished, folder.join(name)).unwrap();
    };

    let mut version = 1;
    while Instant::now() < until {
        version += 1;
        match random.below(6) {
            0 | 1 => put("colours.onnx", &tiny_model(version)),
            2 => put("colours.onnx", b"not a model"),
            3 => put("guest.onnx", &tiny_model(version)),
            4 => {
                // There may be none.
                let _ = fs::remove_file(folder.join("guest.onnx"));
            }
            _ => server.signal("HUP"),
        }
        tokio::time::sleep(random.milliseconds(300)).await;
    }

    put("colours.onnx", &tiny_model(0));
    let _ = fs::remove_file(folder.join("guest.onnx"));
    server.signal("HUP");
}
