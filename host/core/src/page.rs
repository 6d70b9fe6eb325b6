//! A part of a list: how many items it has, how large it may be, and whether there is more.

/// Items in the order of their list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page<T> {
    /// The items. Where the next page starts is behind the last of them.
    pub items: Vec<T>,
    /// Whether there is a next page.
    pub more: bool,
}

impl<T> Page<T> {
    /// A page of at most `limit` of these rows, of which one more than that was asked for.
    pub fn of(mut rows: Vec<T>, limit: u32) -> Page<T> {
        let more = rows.len() > limit as usize;
        rows.truncate(limit as usize);
        Page { items: rows, more }
    }

    /// Ends the page before the item with which it would be larger than `bytes_max`. The first item stays whatever its
    /// size, or it could never be read.
    #[must_use]
    pub fn within(mut self, bytes_max: usize, bytes: impl Fn(&T) -> usize) -> Page<T> {
        let mut sum = 0_usize;
        let over = self.items.iter().position(|item| {
            sum = sum.saturating_add(bytes(item));
            sum > bytes_max
        });
        if let Some(over) = over {
            let kept = over.max(1);
            self.more |= kept < self.items.len();
            self.items.truncate(kept);
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_row_more_than_the_limit_says_that_there_is_more() {
        let check = |rows: usize, limit, expected: (usize, bool)| {
            let page = Page::of(vec![0_usize; rows], limit);
            assert_eq!((page.items.len(), page.more), expected, "{rows} of {limit}");
        };
        check(0, 2, (0, false));
        check(2, 2, (2, false));
        check(3, 2, (2, true));
    }

    #[test]
    fn a_page_ends_at_its_bytes_but_not_before_its_first_item() {
        let check = |sizes: &[usize], expected: (usize, bool)| {
            let page = Page { items: sizes.to_vec(), more: false }.within(10, |size| *size);
            assert_eq!((page.items.len(), page.more), expected, "{sizes:?}");
        };
        check(&[], (0, false));
        check(&[4, 6], (2, false));
        check(&[4, 7], (1, true));
        check(&[4, 6, 1], (2, true));
        check(&[11], (1, false));
        check(&[11, 1], (1, true));
        check(&[usize::MAX, usize::MAX], (1, true));
        let more = Page { items: vec![1], more: true }.within(10, |size| *size);
        assert!(more.more, "what was there before stays");
    }
}
