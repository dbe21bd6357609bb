//! JPEG files that several threads decode: the crops, and the errors, are those of one thread.

use std::sync::Arc;

use super::*;
use crate::image::{Helpers, Region, RegionUnit, task_group::testing::Threads};

/// One thread, and threads with helpers of several kinds.
struct Decoders {
    alone: Preprocessor,
    helped: Vec<(Arc<Threads>, Preprocessor)>,
}

impl Decoders {
    fn new(config: PreprocessConfig) -> Self {
        let helped = [(1, 0), (3, 0), (2, 3), (1, 1)].map(|(count, refused)| {
            let threads = Threads::new(count, refused);
            let helpers: Arc<dyn Helpers> = Arc::clone(&threads) as _;
            (threads, Preprocessor::new(config).with_helpers(helpers))
        });
        Self {
            alone: Preprocessor::new(config),
            helped: helped.into(),
        }
    }

    /// Whether the file is accepted.
    fn compare(&mut self, file: &[u8], geometry: &Geometry, name: &str) -> bool {
        let source = Source::Encoded(file.to_vec().into());
        let crop = |preprocessor: &mut Preprocessor| {
            let mut crop = vec![0; geometry.bytes()];
            let result = preprocessor.crop(&source, geometry, &mut crop);
            result.map(|()| crop).map_err(|error| error.to_string())
        };
        let expected = crop(&mut self.alone);
        for (threads, preprocessor) in &mut self.helped {
            let found = crop(preprocessor);
            assert!(
                found == expected,
                "{name} with {threads:?}: {:?} in place of {:?}",
                found.map(|_| "a crop"),
                expected.map(|_| "a crop")
            );
        }
        expected.is_ok()
    }

    fn calls(&self) -> usize {
        self.helped.iter().map(|(threads, _)| threads.calls()).sum()
    }
}

const GEOMETRIES: [Geometry; 4] = [
    Geometry::cropped(8, 8, 16),
    Geometry::cropped(16, 3, 19),
    Geometry::cropped(30, 30, 30),
    Geometry::cropped(224, 224, 256),
];

/// The JPEG files of the repository, by name.
fn files() -> Vec<(String, Vec<u8>)> {
    [data(), data().join("jpeg")]
        .iter()
        .flat_map(|folder| std::fs::read_dir(folder).unwrap())
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "jpg"))
        .map(|path| (path.display().to_string(), read(&path)))
        .collect()
}

#[test]
fn crops_are_the_same_with_and_without_helpers() {
    for config in [PreprocessConfig::default(), SCALED] {
        let mut decoders = Decoders::new(config);
        let mut accepted = 0;
        for (name, file) in files() {
            for geometry in GEOMETRIES {
                accepted += usize::from(decoders.compare(&file, &geometry, &name));
            }
            // Turned by a quarter, its rows are not scaled at once.
            let exif = b"\xff\xe1\0\x22Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0";
            let turned = [&file[..2], exif, &file[2..]].concat();
            decoders.compare(&turned, &GEOMETRIES[2], &name);
        }
        assert!(accepted > 100, "{accepted} are accepted");
        // What libjpeg-turbo decodes is not shared.
        let least = if cfg!(feature = "turbojpeg") {
            100
        } else {
            1000
        };
        assert!(decoders.calls() > least, "{} calls", decoders.calls());
    }
}

#[test]
fn regions_are_the_same_with_and_without_helpers() {
    let mut decoders = Decoders::new(PreprocessConfig::default());
    let region = |left, top| Region {
        left,
        top,
        width: 0.4,
        height: 0.5,
        unit: RegionUnit::Fractions,
    };
    let regions = [region(0.1, 0.0), region(0.6, 0.5)];
    let geometry = Geometry::cropped(20, 30, 32);
    for (name, file) in files() {
        let source = Source::Encoded(file.into());
        let crops = |preprocessor: &mut Preprocessor| {
            let mut crops = vec![vec![0; geometry.bytes()]; 2];
            let result = preprocessor.crop_regions(&source, &regions, &geometry, &mut crops);
            // The narrowest pictures have no such regions.
            result.map(|()| crops).map_err(|error| error.to_string())
        };
        let expected = crops(&mut decoders.alone);
        for (_, preprocessor) in &mut decoders.helped {
            assert!(crops(preprocessor) == expected, "{name}");
        }
    }
}

#[test]
fn damaged_files_give_the_same_with_and_without_helpers() {
    let mut decoders = Decoders::new(PreprocessConfig::default());
    let mut random = random_numbers(0x9e37_79b9_7f4a_7c15);
    let files: Vec<_> = files()
        .into_iter()
        .filter(|(_, file)| file.len() < 40_000)
        .collect();
    let mut accepted = 0;
    let rounds = std::env::var("RESNET18_TEST_DAMAGED").ok();
    let rounds = rounds.map_or(400, |rounds| rounds.parse().unwrap());
    for round in 0..rounds {
        let (name, file) = &files[random(files.len())];
        let mut file = file.clone();
        for _ in 0..=random(3) {
            let place = random(file.len());
            match random(4) {
                // A marker, right or wrong.
                0 if place + 1 < file.len() => {
                    file[place] = 0xff;
                    file[place + 1] = 0xd0 + random(8) as u8;
                }
                // Something is missing.
                1 => {
                    let end = (place + 1 + random(40)).min(file.len());
                    file.drain(place..end);
                }
                _ => file[place] = random(256) as u8,
            }
        }
        if random(5) == 0 {
            file.truncate(random(file.len()).max(1));
        }
        let geometry = GEOMETRIES[random(GEOMETRIES.len())];
        let name = format!("{name}, damaged in round {round}");
        accepted += usize::from(decoders.compare(&file, &geometry, &name));
    }
    assert!(accepted > rounds / 20, "{accepted} are accepted");
}

#[test]
#[cfg(not(feature = "turbojpeg"))]
fn time_that_helpers_spend_counts() {
    let photo = read(data().join("cat.jpg"));
    let source = Source::Encoded(photo.clone().into());
    let mut decoders = Decoders::new(PreprocessConfig::default());
    let mut crop = vec![0; GEOMETRIES[3].bytes()];
    let (_, preprocessor) = &mut decoders.helped[0];
    for _ in 0..100 {
        preprocessor
            .crop(&source, &GEOMETRIES[3], &mut crop)
            .unwrap();
        if !preprocessor.helped().is_zero() {
            // That of the last image only.
            let ready = crate::image::Crop::Pixels(crop.clone().into());
            preprocessor
                .crop(&Source::Crop(ready), &GEOMETRIES[3], &mut crop)
                .unwrap();
            assert!(preprocessor.helped().is_zero());
            return;
        }
    }
    panic!("nobody has helped");
}
