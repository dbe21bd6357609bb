//! Tests of the store: what is kept, what is not, and what is found again.

use std::{fs, path::Path, sync::Arc};

use super::{
    TeachError,
    store::{self, Limits, Reservation, Store},
};
use crate::offline::dataset::Dataset;

const LIMITS: Limits = Limits {
    bytes: 1000,
    pictures: 3,
    classes: 2,
    datasets: 2,
};

/// The beginning of a PNG, and something that tells it from others.
fn picture(number: u8) -> Vec<u8> {
    [b"\x89PNG\r\n\x1a\n", &[number; 92][..]].concat()
}

fn open(folder: &Path) -> Arc<Store> {
    Arc::new(Store::open(folder, LIMITS).unwrap())
}

/// Keeps a picture; the reason if it is refused, `known` if it is there.
fn keep(store: &Arc<Store>, dataset: &str, class: &str, picture: &[u8]) -> Result<(), String> {
    match store.reserve(dataset, class, picture).unwrap() {
        Reservation::Room(room) => {
            room.keep(picture).unwrap();
            Ok(())
        }
        Reservation::Known(_) => Err("known".into()),
        Reservation::Refused(reason) => Err(reason),
    }
}

fn refusal(store: &Arc<Store>, dataset: &str, class: &str, picture: &[u8]) -> String {
    keep(store, dataset, class, picture).unwrap_err()
}

#[test]
fn kept_pictures_are_a_dataset_and_are_found_again() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    keep(&store, "cups", "blue cup", &picture(1)).unwrap();
    keep(&store, "cups", "red", &picture(2)).unwrap();
    assert_eq!(refusal(&store, "cups", "red", &picture(2)), "known");
    let elsewhere = refusal(&store, "cups", "blue cup", &picture(2));
    assert!(elsewhere.contains("\"red\" already"), "{elsewhere}");

    let dataset = Dataset::read(&folder.path().join("cups")).unwrap();
    assert_eq!(dataset.train.classes, ["blue cup", "red"]);
    assert_eq!(dataset.train.photos.len(), 2);
    let path = &dataset.train.photos[0].path;
    assert_eq!(fs::read(path).unwrap(), picture(1));
    let name = path.file_name().unwrap().to_str().unwrap();
    assert_eq!(
        store::hash_in_name(name),
        Some(&store::hash(&picture(1))[..])
    );

    let again = open(folder.path());
    assert_eq!(again.names(), ["cups"]);
    assert_eq!(refusal(&again, "cups", "red", &picture(2)), "known");
    assert_eq!(
        again.dataset("cups").unwrap(),
        store.dataset("cups").unwrap()
    );
}

#[test]
fn pictures_beyond_a_limit_are_refused_with_its_flag() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    for number in 0..3 {
        keep(&store, "a", "x", &picture(number)).unwrap();
    }
    let reasons = [
        (refusal(&store, "a", "x", &picture(9)), "--teach-pictures"),
        {
            keep(&store, "a", "y", &picture(3)).unwrap();
            (refusal(&store, "a", "z", &picture(9)), "--teach-classes")
        },
        {
            keep(&store, "b", "x", &picture(0)).unwrap();
            (refusal(&store, "c", "x", &picture(9)), "--teach-datasets")
        },
        {
            let large = [picture(8), vec![0; 500]].concat();
            (refusal(&store, "b", "x", &large), "--teach-mib")
        },
        (refusal(&store, "b", "x", b"no picture"), "not an image"),
    ];
    for (reason, part) in reasons {
        assert!(reason.contains(part), "{part}: {reason}");
    }
    assert_eq!(store.names(), ["a", "b"], "refused ones leave nothing");
    assert!(!folder.path().join("c").exists());
}

#[test]
fn a_place_that_is_not_used_is_free_again() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    for _ in 0..5 {
        let reserved = store.reserve("a", "x", &picture(1)).unwrap();
        assert!(matches!(reserved, Reservation::Room(_)));
        // The picture turns out to be damaged.
    }
    assert!(store.names().is_empty());

    // A place is held against others, and a listing meanwhile does not forget the picture.
    keep(&store, "a", "x", &picture(0)).unwrap();
    let Reservation::Room(room) = store.reserve("a", "x", &picture(1)).unwrap() else {
        panic!("there is room");
    };
    assert_eq!(refusal(&store, "a", "x", &picture(1)), "known");
    assert_eq!(store.dataset("a").unwrap()["x"].len(), 1);
    room.keep(&picture(1)).unwrap();
    assert_eq!(refusal(&store, "a", "x", &picture(1)), "known");
    assert_eq!(store.dataset("a").unwrap()["x"].len(), 2);
}

#[test]
fn no_name_leads_out_of_the_folder() {
    let outside = tempfile::tempdir().unwrap();
    let folder = outside.path().join("teach");
    let store = open(&folder);
    for bad in ["../x", "..", "", "a/b", "/etc", ".hidden", "x.onnx"] {
        for (dataset, class) in [(bad, "x"), ("a", bad)] {
            let refused = store.reserve(dataset, class, &picture(1));
            assert!(matches!(refused, Err(TeachError::Name(_))), "{bad}");
        }
        assert!(store.dataset(bad).is_err());
        assert!(store.remove(bad, None, &[]).is_err());
    }
    keep(&store, "a", "x", &picture(1)).unwrap();
    fs::write(outside.path().join("secret.png"), "mine").unwrap();
    let named = store.remove("a", Some("x"), &["../../../../secret.png".into()]);
    assert!(matches!(named, Err(TeachError::Unknown(_))));
    assert!(outside.path().join("secret.png").exists());
}

#[test]
fn removing_leaves_what_is_not_a_picture() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    for (class, number) in [("x", 0), ("x", 1), ("y", 2)] {
        keep(&store, "a", class, &picture(number)).unwrap();
    }
    store.keep_features("a", "key", "hash", &[1.0, 2.0]);
    assert_eq!(store.features("a", "key", "hash", 2), Some(vec![1.0, 2.0]));
    assert_eq!(store.features("a", "key", "hash", 3), None);

    let first = store.dataset("a").unwrap()["x"].keys().next().cloned();
    assert_eq!(store.remove("a", Some("x"), &[first.unwrap()]).unwrap(), 1);
    assert_eq!(store.dataset("a").unwrap()["x"].len(), 1);
    assert!(store.remove("a", Some("z"), &[]).is_err());

    let note = folder.path().join("a/train/y/note.txt");
    fs::write(&note, "mine").unwrap();
    assert_eq!(store.remove("a", None, &[]).unwrap(), 2);
    assert!(note.exists(), "it is no picture");
    fs::remove_file(note).unwrap();
    assert_eq!(store.remove("a", None, &[]).unwrap(), 0);
    assert!(!folder.path().join("a").exists());
    assert!(store.names().is_empty());
    keep(&store, "b", "x", &picture(0)).unwrap();
}

#[test]
fn features_of_pictures_that_are_gone_are_removed() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    keep(&store, "a", "x", &picture(0)).unwrap();
    for (key, hash) in [("old", "1"), ("new", "1"), ("new", "2")] {
        store.keep_features("a", key, hash, &[0.5]);
    }
    store.tidy_features("a", "new", &["2".into()]);
    assert!(store.features("a", "old", "1", 1).is_none());
    assert!(store.features("a", "new", "1", 1).is_none());
    assert_eq!(store.features("a", "new", "2", 1), Some(vec![0.5]));
}
