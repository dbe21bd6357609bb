//! Images that give several crops, and embeddings.

use super::*;
use crate::image::{Region, RegionUnit};

/// An image of 2 pixels by 2, each of another value: 1, 2, 3 and 4.
fn four_pixels() -> Source {
    let data: Vec<u8> = [1, 2, 3, 4].iter().flat_map(|&value| [value; 3]).collect();
    Source::Raw(RawFrame {
        format: PixelFormat::Rgb8,
        width: 2,
        height: 2,
        stride: 0,
        data: data.into(),
    })
}

fn pixel(left: f64, top: f64) -> Region {
    Region {
        left,
        top,
        width: 1.0,
        height: 1.0,
        unit: RegionUnit::Pixels,
    }
}

fn regions_job(regions: Vec<Region>) -> Job {
    let image = InputImage {
        source: four_pixels(),
        regions: regions.clone().into(),
        arrived: Instant::now(),
        mirrored: false,
    };
    Job {
        crops: regions.len(),
        fetch: Box::new(move || Some(image)),
        ..job(0)
    }
}

fn all() -> Vec<Region> {
    [(1.0, 1.0), (0.0, 0.0), (1.0, 0.0), (0.0, 1.0)]
        .map(|(left, top)| pixel(left, top))
        .into()
}

#[test]
fn each_region_is_a_crop_and_all_are_answered_together() {
    let bench = Setup {
        max_batch: 3,
        ..Setup::default()
    }
    .start();
    let outcome = bench.queue.submit(regions_job(all())).unwrap();
    assert_eq!(bench.call().images, [4, 1, 2]);
    bench.go();
    assert_eq!(bench.call().images, [3]);
    bench.go();
    let reply = outcome.blocking_recv().unwrap().unwrap();
    let logits: Vec<f32> = reply.outputs.iter().map(|crop| crop.logits[0]).collect();
    assert_eq!(logits, [4.0, 1.0, 2.0, 3.0]);
}

#[test]
fn a_region_outside_of_the_image_fails_the_image_alone() {
    let bench = Setup::default().start();
    let bad = regions_job(vec![pixel(0.0, 0.0), pixel(2.0, 0.0)]);
    let bad = bench.queue.submit(bad).unwrap();
    let good = bench.submit(7);
    let error = bad.blocking_recv().unwrap().unwrap_err();
    assert!(error.to_string().contains("region 2 of 2"), "{error}");
    assert_eq!(bench.call().images, [7]);
    bench.go();
    assert_eq!(logit(good), 7.0);
}

#[test]
fn crops_of_a_caller_that_has_gone_are_not_inferred() {
    let bench = Setup::default().start();
    let first = bench.occupy(9);
    drop(bench.queue.submit(regions_job(all())).unwrap());
    bench.go();
    assert_eq!(logit(first), 9.0);
    bench.no_call();
}

#[test]
fn embeddings_come_with_those_crops_alone_whose_callers_want_them() {
    let bench = Setup {
        max_batch: 2,
        embedding: Some(2),
        ..Setup::default()
    }
    .start();
    let first = bench.occupy(9);
    let with = Job {
        wants_embedding: true,
        ..job(5)
    };
    let with = bench.queue.submit(with).unwrap();
    let without = bench.submit(6);
    bench.go();
    assert_eq!(logit(first), 9.0);
    assert_eq!(bench.call().images, [5, 6]);
    bench.go();
    let [with, without] = [with, without].map(|outcome| {
        let mut reply = outcome.blocking_recv().unwrap().unwrap();
        reply.outputs.remove(0)
    });
    assert_eq!((with.logits[0], without.logits[0]), (5.0, 6.0));
    assert_eq!(with.embedding, Some(vec![5.0, 2.0]));
    assert_eq!(without.embedding, None);
}

#[test]
fn a_caller_is_charged_for_each_crop() {
    let bench = Setup::default().start();
    // Two callers wait while the lane is busy: one with regions, one with ordinary images.
    let first = bench.occupy(9);
    let regions = Job {
        client: ClientId::alone(2),
        ..regions_job(all())
    };
    let again = Job {
        client: ClientId::alone(2),
        ..job(20)
    };
    let mut others = Vec::new();
    let regions = bench.queue.submit(regions).unwrap();
    let again = bench.queue.submit(again).unwrap();
    for value in 31..34 {
        let client = ClientId::alone(3);
        let job = Job {
            client,
            ..job(value)
        };
        others.push(bench.queue.submit(job).unwrap());
    }
    let mut order = Vec::new();
    for _ in 0..9 {
        bench.go();
        if order.len() < 8 {
            order.extend(bench.call().images);
        }
    }
    drop((first, regions, again, others));
    let place = |value| order.iter().position(|found| *found == value).unwrap();
    assert!(place(33) < place(20), "{order:?}");
}
