//! Zigzag order, in which the coefficients of a block are coded (ITU-T T.81, figure A.6).

/// By the position in zigzag order: the position in a block that is stored row by row.
pub(super) const ZIGZAG: [u8; 64] = zigzag();

/// Walks along the diagonals of a block, alternately up and down.
const fn zigzag() -> [u8; 64] {
    let mut order = [0; 64];
    let (mut column, mut row) = (0u8, 0u8);
    let mut index = 0;
    while index < 64 {
        order[index] = 8 * row + column;
        if (column + row).is_multiple_of(2) {
            // Up and to the right.
            if column == 7 {
                row += 1;
            } else if row == 0 {
                column += 1;
            } else {
                column += 1;
                row -= 1;
            }
        } else if row == 7 {
            column += 1;
        } else if column == 0 {
            row += 1;
        } else {
            row += 1;
            column -= 1;
        }
        index += 1;
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_is_that_of_the_standard() {
        assert_eq!(ZIGZAG[..10], [0, 1, 8, 16, 9, 2, 3, 10, 17, 24]);
        assert_eq!(ZIGZAG[28..36], [7, 14, 21, 28, 35, 42, 49, 56]);
        assert_eq!(ZIGZAG[60..], [47, 55, 62, 63]);
        let mut sorted = ZIGZAG;
        sorted.sort_unstable();
        assert_eq!(sorted, std::array::from_fn(|index| index as u8));
    }
}
