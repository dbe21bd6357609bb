//! Stratified splitting: divides photos into parts with the same share of every class.

use super::random::Random;

/// Assigns each photo at random to one of `parts` parts and returns the part of each, `0..parts`.
/// `classes` are the photos' classes.
///
/// The photos of every class are dealt out in turn from part 0 on, so the sizes of two parts differ
/// by at most one photo of each class, and part 0 has at least one photo of every class.
pub fn stratified(classes: &[usize], parts: usize, random: &mut Random) -> Vec<usize> {
    let mut assigned = vec![0; classes.len()];
    for class in 0..classes.iter().max().map_or(0, |last| last + 1) {
        let mut photos: Vec<usize> = (0..classes.len())
            .filter(|&photo| classes[photo] == class)
            .collect();
        random.shuffle(&mut photos);
        for (turn, photo) in photos.into_iter().enumerate() {
            assigned[photo] = turn % parts;
        }
    }
    assigned
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::offline::training::random::Purpose;

    #[test]
    fn every_class_is_in_every_part() {
        let classes: Vec<usize> = (0..100).map(|photo| usize::from(photo % 4 == 0)).collect();
        let assigned = stratified(&classes, 5, &mut Random::new(3, Purpose::Split));
        for part in 0..5 {
            let of = |class| {
                (0..100)
                    .filter(|&photo| assigned[photo] == part && classes[photo] == class)
                    .count()
            };
            assert_eq!((of(0), of(1)), (15, 5));
        }
        assert_ne!(
            assigned,
            stratified(&classes, 5, &mut Random::new(4, Purpose::Split))
        );
    }

    #[test]
    fn part_0_gets_the_only_photo() {
        assert_eq!(
            stratified(&[0, 1, 1], 5, &mut Random::new(0, Purpose::Split))[0],
            0
        );
    }
}
