//! Where the restart intervals of a scan begin, so that several threads can decode them.

use memchr::memchr;

use super::{marker, scan::Restarts};

/// The restart intervals of the only scan of a file.
pub(super) struct Intervals<'a> {
    pub encoded: &'a [u8],
    /// Where in the file the scan's data begins.
    pub data: usize,
    /// MCUs of an interval, which are not 0, and of a strip.
    pub mcus: usize,
    pub columns: usize,
}

/// The start of a strip with which an interval begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct IntervalStart {
    pub strip: usize,
    /// Where in the file its data begins.
    pub data: usize,
    /// The number of the interval, from 0 on.
    number: usize,
    mcus: usize,
}

impl IntervalStart {
    pub fn restarts(&self) -> Restarts {
        Restarts::from(self.mcus, self.number)
    }
}

impl Intervals<'_> {
    /// Of so many strips the first one begins with an interval.
    pub fn strips(&self) -> usize {
        self.mcus / greatest_common_divisor(self.mcus, self.columns)
    }

    /// Finds the starts of these strips, each of which begins with an interval, in their order; `None`
    /// if the markers up to the last of them are not all there in their order.
    ///
    /// That an interval is as long as it should be is known only once it has been decoded.
    pub fn find(&self, strips: &[usize]) -> Option<Vec<IntervalStart>> {
        let mut starts = Vec::with_capacity(strips.len());
        let mut data = self.data;
        let mut number = 0;
        for &strip in strips {
            let wanted = strip * self.columns / self.mcus;
            while number < wanted {
                data = self.next_interval(data, number)?;
                number += 1;
            }
            starts.push(IntervalStart {
                strip,
                data,
                number,
                mcus: self.mcus,
            });
        }
        Some(starts)
    }

    /// Where the data behind the next marker begins, which ends the interval of this number.
    fn next_interval(&self, mut position: usize, number: usize) -> Option<usize> {
        loop {
            position += memchr(0xff, self.encoded.get(position..)?)?;
            let code = *self.encoded.get(position + 1)?;
            match code {
                0 => position += 2,
                0xff => position += 1,
                _ => {
                    let is_next = code == marker::RST0 + (number % 8) as u8;
                    return is_next.then_some(position + 2);
                }
            }
        }
    }
}

fn greatest_common_divisor(mut a: usize, mut b: usize) -> usize {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

#[cfg(test)]
mod tests {
    use super::*;

    fn starts(encoded: &[u8], strips: &[usize]) -> Option<Vec<usize>> {
        let intervals = Intervals {
            encoded,
            data: 2,
            mcus: 3,
            columns: 6,
        };
        assert_eq!(intervals.strips(), 1);
        let starts = intervals.find(strips)?;
        Some(starts.into_iter().map(|start| start.data).collect())
    }

    #[test]
    fn intervals_begin_behind_markers_in_their_order() {
        let data = b"..ab\xff\xd0c\xff\0\xff\xff\xd1de\xff\xd2\xff\xd3x\xff\xd9";
        assert_eq!(starts(data, &[0, 1, 2]), Some(vec![2, 12, 18]));
        assert_eq!(starts(data, &[0, 3]), None, "the image ends before it");
        for wrong in [
            &b"..ab\xff\xd1cd\xff\xd1"[..],
            b"..ab\xff\xd0cd\xff\xc4\xff\xd1",
            b"..ab\xff\xd0cd\xff",
            b"..ab\xff\xd0cd",
        ] {
            assert_eq!(starts(wrong, &[0, 1]), None);
        }
    }

    #[test]
    fn strips_that_begin_with_an_interval_are_known() {
        for (mcus, columns, strips) in [(1, 7, 1), (7, 7, 1), (14, 7, 2), (5, 7, 5), (6, 4, 3)] {
            let intervals = Intervals {
                encoded: &[],
                data: 0,
                mcus,
                columns,
            };
            assert_eq!(intervals.strips(), strips);
        }
    }
}
