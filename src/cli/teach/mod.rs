//! `resnet18 teach`: adds photos to the classes of a running server, and lets it learn from them.

mod pictures;
mod report;
mod session;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use self::{
    pictures::{Pictures, VideoFlags},
    report::TeachReport,
    session::Session,
};
use super::{CliError, files::Images, flags::ServerFlags, output, report as reports, values};
use crate::client;

const LONG_HELP: &str = "\
The server must have been started with --teach. Two classes with ten photos each are a start:

  resnet18 teach cups --class 'blue cup' photos/blue
  resnet18 teach cups --class 'red cup' photos/red
  resnet18 teach cups --train
  resnet18 classify --model cups cup.jpg

--camera takes the pictures: 20 in four seconds, after a countdown, from the first camera or the one \
that is named. Files that are no images are read as videos, and pictures spread over each of them are \
taken. Both need the ffmpeg program.

  resnet18 teach cups --class 'blue cup' --camera
  resnet18 teach cups --class 'red cup' red.mp4 --pictures 40

A class `nothing of these`, with pictures of the background, stands for everything that the other \
classes are not: servers answer it with an empty label. --train --reject-unknown learns that class \
without pictures of it.

The accuracy is that of cross-validation: of layers that did not see the photos that they classify.

With --json, the result is one object with the keys of what was done:
  {\"added\": {\"kept\", \"known\", \"refused\": [{\"file\", \"reason\"}]}}
  {\"removed\": N}
  {\"trained\": {\"model\", \"version\", \"photos\", \"accuracy\", \"skipped\": [{\"file\", \"reason\"}],
    \"labels\", \"confusion_matrix\", \"mistakes\": [{\"file\", \"label\", \"predicted\", \"probability\"}],
    \"took_s\"}}
  {\"datasets\": [{\"name\", \"classes\": [{\"name\", \"photos\", \"bytes\"}],
    \"model\": {\"version\", \"accuracy\", \"photos\"} or null}]}

Exit status: 0 = success, 1 = a photo was not kept, or the server refuses, 64 = wrong flags.";

/// The flags of `resnet18 teach`.
#[derive(Debug, clap::Args)]
#[command(after_long_help = LONG_HELP)]
#[command(group = clap::ArgGroup::new("what").multiple(true).required(true)
          .args(["class", "train", "list", "remove"]))]
pub struct Args {
    /// The name of the dataset, and of the model that is learned from it: letters, digits, -, _ and
    /// spaces inside.
    #[arg(required_unless_present = "list")]
    name: Option<String>,
    /// Photos of the class, folders of them, and videos.
    #[arg(value_name = "PHOTOS", requires = "class", conflicts_with = "remove")]
    photos: Vec<PathBuf>,
    /// The class that the photos show; it becomes a label.
    #[arg(long, env = "RESNET18_TEACH_CLASS", value_name = "CLASS")]
    class: Option<String>,
    /// Learn from the photos, and serve the model.
    #[arg(long, env = "RESNET18_TEACH_TRAIN", conflicts_with = "remove")]
    train: bool,
    /// Learn the class `nothing of these` without photos of it, so that photos of other things are
    /// not called one of the classes.
    #[arg(long, env = "RESNET18_TEACH_REJECT_UNKNOWN", requires = "train")]
    reject_unknown: bool,
    /// List what was taught.
    #[arg(long, env = "RESNET18_TEACH_LIST", conflicts_with_all = ["class", "train", "remove"])]
    list: bool,
    /// Remove the photos of the class, or without --class the dataset and its model.
    #[arg(long, env = "RESNET18_TEACH_REMOVE")]
    remove: bool,
    #[command(flatten)]
    video: VideoFlags,
    #[command(flatten)]
    server: ServerFlags,
    /// Time limit for each step: adding the photos, and learning (ms, s, m or h).
    #[arg(long, env = "RESNET18_TEACH_TIMEOUT", value_name = "DURATION", default_value = "10m",
          value_parser = values::positive_duration)]
    timeout: Duration,
    /// Print one line of JSON.
    #[arg(long, env = "RESNET18_TEACH_JSON")]
    json: bool,
}

/// Adds, removes, trains or lists, and prints what came of it.
///
/// # Errors
/// If photos can't be found, or the server can't be reached or refuses the call.
pub async fn run(args: Args) -> Result<ExitCode, CliError> {
    let has_pictures = !args.photos.is_empty() || args.video.has_camera();
    if args.class.is_some() && !has_pictures && !args.remove {
        return Err(CliError::Usage(
            "--class needs photos: resnet18 teach NAME --class CLASS PHOTOS..., or --camera".into(),
        ));
    }
    let images = Images::find(&args.photos)?;
    reports::print_ignored(images.ignored, args.json);
    let server = args.server.server()?;
    let mut session = Session {
        teacher: client::connect_teacher(&server).await?,
        address: server.address,
        timeout: args.timeout,
    };

    let name = args.name.unwrap_or_default();
    session.wait_until_ready(&name).await;
    let mut result = TeachReport::default();
    if args.list {
        result.datasets = Some(session.list(name).await?);
    } else if args.remove {
        result.removed = Some(session.remove(name, args.class.unwrap_or_default()).await?);
    } else {
        if let Some(class) = &args.class {
            let pictures = Pictures::new(images.files, args.video, args.json);
            let (added, read) = session.add(&name, class, pictures).await?;
            if !args.json {
                output::print_line(&report::describe_added(class, &added))?;
            }
            read?;
            result.added = Some(added);
        }
        if args.train {
            result.trained = Some(session.train(name, args.reject_unknown).await?);
        }
    }

    let refused = result
        .added
        .as_ref()
        .is_some_and(|added| !added.refused.is_empty());
    if args.json {
        output::print_json(&result)?;
    } else {
        report::print(&result)?;
    }
    Ok(if refused {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}
