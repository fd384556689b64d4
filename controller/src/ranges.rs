//! A set of numbers kept as merged ranges, so that the lowest free one is found without walking over those
//! that are taken: a /8 or a /64 costs no more than a /24.

use std::collections::BTreeMap;

/// Numbers in use: addresses of one family as integers, or VNIs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeSet {
    /// First to last (inclusive). Ranges neither overlap nor touch.
    ranges: BTreeMap<u128, u128>,
}

impl RangeSet {
    /// The range that holds a number.
    fn around(&self, number: u128) -> Option<(u128, u128)> {
        let (&first, &last) = self.ranges.range(..=number).next_back()?;
        (number <= last).then_some((first, last))
    }

    /// Whether the number is taken.
    pub fn contains(&self, number: u128) -> bool {
        self.around(number).is_some()
    }

    /// Takes a number; false when it was taken.
    pub fn insert(&mut self, number: u128) -> bool {
        if self.contains(number) {
            return false;
        }
        let (mut first, mut last) = (number, number);
        if let Some((before, _)) = number.checked_sub(1).and_then(|below| self.around(below)) {
            self.ranges.remove(&before);
            first = before;
        }
        if let Some((after, end)) = number.checked_add(1).and_then(|above| self.around(above)) {
            self.ranges.remove(&after);
            last = end;
        }
        self.ranges.insert(first, last);
        true
    }

    /// Gives a number back; false when it was free.
    pub fn remove(&mut self, number: u128) -> bool {
        let Some((first, last)) = self.around(number) else {
            return false;
        };
        self.ranges.remove(&first);
        if first < number {
            self.ranges.insert(first, number - 1);
        }
        if number < last {
            self.ranges.insert(number + 1, last);
        }
        true
    }

    /// The lowest free number from `from` to `to`, both included.
    pub fn lowest_free(&self, from: u128, to: u128) -> Option<u128> {
        let free = match self.around(from) {
            // Ranges do not touch, so what follows one is free.
            Some((_, last)) => last.checked_add(1)?,
            None => from,
        };
        (free <= to).then_some(free)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn it_behaves_as_a_plain_set(steps in prop::collection::vec((any::<bool>(), 0u128..40), 0..200)) {
            // Near the top, so that the arithmetic at the end of the number line is part of it.
            let offset = u128::MAX - 39;
            let (mut set, mut model) = (RangeSet::default(), BTreeSet::new());
            for (add, number) in steps {
                let number = number + offset;
                if add {
                    prop_assert_eq!(set.insert(number), model.insert(number));
                } else {
                    prop_assert_eq!(set.remove(number), model.remove(&number));
                }
                for from in 0..40 {
                    let from = from + offset;
                    let expected = (from..=u128::MAX).find(|number| !model.contains(number));
                    prop_assert_eq!(set.lowest_free(from, u128::MAX), expected);
                    prop_assert_eq!(set.contains(from), model.contains(&from));
                }
            }
        }
    }

    #[test]
    fn a_million_taken_numbers_cost_one_range() {
        let mut set = RangeSet::default();
        for number in 0..1_000_000 {
            assert_eq!(set.lowest_free(0, u128::MAX), Some(number));
            set.insert(number);
        }
        assert_eq!(set.ranges.len(), 1);
    }
}
