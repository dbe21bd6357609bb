//! Dividing photos into parts that have the same share of every class.

use super::random::Random;

/// For each photo the part, 0 to `parts` - 1, that it falls into; `classes` are the photos'
/// classes.
///
/// Every class is dealt out from part 0 on, so part 0 has at least one photo of each.
pub fn parts(classes: &[usize], parts: usize, random: &mut Random) -> Vec<usize> {
    let mut assigned = vec![0; classes.len()];
    for class in 0..classes.iter().max().map_or(0, |last| last + 1) {
        let mut photos: Vec<usize> = (0..classes.len())
            .filter(|&photo| classes[photo] == class)
            .collect();
        random.shuffle(&mut photos);
        photos
            .into_iter()
            .enumerate()
            .for_each(|(turn, photo)| assigned[photo] = turn % parts);
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
        let assigned = parts(&classes, 5, &mut Random::new(3, Purpose::Split));
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
            parts(&classes, 5, &mut Random::new(4, Purpose::Split))
        );
    }

    #[test]
    fn part_0_gets_the_only_photo() {
        assert_eq!(
            parts(&[0, 1, 1], 5, &mut Random::new(0, Purpose::Split))[0],
            0
        );
    }
}
