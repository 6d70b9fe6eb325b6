//! Release dates: how they are spelled, and which ones are not to be believed.
//!
//! The list has one spelling, `Jun 12 1998`. Read are also `June 12, 1998`, `12-Jun-98`, `1998-06-12` and a year alone.
//!
//! **The century.** Years after [`YEAR_LAST`] lie 100 years too late: the list has 92 films of 2010, two of 2011 and
//! none for the three years after that, and then follow The Birth of a Nation in 2015 (1915) to The Best Years of Our Lives in
//! 2046 (1946). They are two-digit years that somebody read with the wrong pivot. 100 years are taken off. The rule
//! is a constant and not a clock, so the answer stays the same as time goes by; for a list made later, raise it.
//!
//! **Days that stand for none.** Dec 31 1969 is the Unix time 0 seen from the United States: unknown. Jan 1 and Dec 31
//! are mostly years without a day: of the 79 other films on Dec 31, 56 are older than 1980. They are kept and noted, because
//! some films did open on that day. Many a Dec 31 is the first moment of the next year, seen from the United
//! States: Casablanca (1942) stands under 1941. The year is not guessed at.

use crate::film::ProblemCode;

/// The last year in which a film of this list may open.
const YEAR_LAST: u16 = 2012;
/// Roundhay Garden Scene, the first film there is.
const YEAR_FIRST: u16 = 1888;

const MONTHS: [&str; 12] = [
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
];

/// When a film opened: a day, or only a year.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Release {
    year: u16,
    /// Month and day, both from 1.
    day: Option<(u8, u8)>,
}

impl Release {
    pub(crate) fn date(self) -> Option<String> {
        self.day.map(|(month, day)| format!("{:04}-{month:02}-{day:02}", self.year))
    }

    pub(crate) fn year(self) -> u16 {
        self.year
    }

    pub(crate) fn decade(self) -> u16 {
        self.year - self.year % 10
    }
}

/// Reads a date in any of its spellings, and tells what is wrong with it.
pub(crate) fn read(written: &str) -> (Option<Release>, Vec<ProblemCode>) {
    let Some(mut release) = spelled(written) else {
        return (None, vec![ProblemCode::BadDate]);
    };
    let mut problems = Vec::new();
    if release == (Release { year: 1969, day: Some((12, 31)) }) {
        return (None, vec![ProblemCode::UnknownDate]);
    }
    if release.year > YEAR_LAST {
        release.year -= 100;
        problems.push(ProblemCode::WrongCentury);
    }
    if !(YEAR_FIRST..=YEAR_LAST).contains(&release.year) || !is_in_calendar(release) {
        return (None, vec![ProblemCode::BadDate]);
    }
    match release.day {
        None => problems.push(ProblemCode::YearOnly),
        Some((1, 1) | (12, 31)) => problems.push(ProblemCode::PlaceholderDay),
        Some(_) => {}
    }
    (Some(release), problems)
}

fn spelled(written: &str) -> Option<Release> {
    let parts: Vec<&str> = written.split([' ', '-', ',']).filter(|part| !part.is_empty()).collect();
    match parts[..] {
        [year] => Some(Release { year: four_digits(year)?, day: None }),
        [year, month, day] if four_digits(year).is_some() => {
            Some(Release { year: four_digits(year)?, day: Some((two_digits(month)?, two_digits(day)?)) })
        }
        [first, second, year] => {
            let year = four_digits(year).or_else(|| two_digits(year).map(with_century))?;
            let day = match month(first) {
                Some(month) => (month, two_digits(second)?),
                None => (month(second)?, two_digits(first)?),
            };
            Some(Release { year, day: Some(day) })
        }
        _ => None,
    }
}

/// Two digits mean the latest year that may be.
fn with_century(two_digits: u8) -> u16 {
    let year = 2000 + u16::from(two_digits);
    if year > YEAR_LAST { year - 100 } else { year }
}

fn four_digits(written: &str) -> Option<u16> {
    if written.len() == 4 && is_digits(written) { written.parse().ok() } else { None }
}

/// One digit will do.
fn two_digits(written: &str) -> Option<u8> {
    if written.len() <= 2 && is_digits(written) { written.parse().ok() } else { None }
}

fn is_digits(written: &str) -> bool {
    written.bytes().all(|byte| byte.is_ascii_digit())
}

/// A month's English name or the first three letters of it.
fn month(written: &str) -> Option<u8> {
    let written = written.to_ascii_lowercase();
    let is_it = |name: &&str| *name == written || name[..3] == written;
    MONTHS.iter().position(is_it).and_then(|index| u8::try_from(index + 1).ok())
}

fn is_in_calendar(release: Release) -> bool {
    let Some((month, day)) = release.day else { return true };
    let leap = release.year.is_multiple_of(4)
        && (!release.year.is_multiple_of(100) || release.year.is_multiple_of(400));
    let days = match month {
        2 if leap => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return false,
    };
    (1..=days).contains(&day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(written: &str, date: Option<&str>, decade: Option<u16>, problems: &[ProblemCode]) {
        let (release, found) = read(written);
        assert_eq!(release.and_then(Release::date).as_deref(), date, "{written}");
        assert_eq!(release.map(Release::decade), decade, "{written}");
        assert_eq!(found, problems, "{written}");
    }

    #[test]
    fn every_spelling_gives_the_same_day() {
        let spellings = [
            "Jun 12 1998",
            "June 12, 1998",
            "12-Jun-98",
            "12-Jun-1998",
            "1998-06-12",
            "JUN 12 1998",
            "12 June 1998",
        ];
        for written in spellings {
            check(written, Some("1998-06-12"), Some(1990), &[]);
        }
    }

    #[test]
    fn years_after_the_list_are_of_the_century_before() {
        check("Dec 23 2011", Some("2011-12-23"), Some(2010), &[]);
        check("Jun 01 2012", Some("2012-06-01"), Some(2010), &[]);
        check("Jun 01 2013", Some("1913-06-01"), Some(1910), &[ProblemCode::WrongCentury]);
        check("Feb 08 2015", Some("1915-02-08"), Some(1910), &[ProblemCode::WrongCentury]);
        check(
            "Dec 31 2046",
            Some("1946-12-31"),
            Some(1940),
            &[ProblemCode::WrongCentury, ProblemCode::PlaceholderDay],
        );
        check("12-Jun-12", Some("2012-06-12"), Some(2010), &[]);
        check("12-Jun-13", Some("1913-06-12"), Some(1910), &[]);
        check("Jun 12 2113", None, None, &[ProblemCode::BadDate]);
    }

    #[test]
    fn days_that_stand_for_none_are_noted() {
        check("Dec 31 1969", None, None, &[ProblemCode::UnknownDate]);
        check("Dec 31 1970", Some("1970-12-31"), Some(1970), &[ProblemCode::PlaceholderDay]);
        check("Jan 01 1970", Some("1970-01-01"), Some(1970), &[ProblemCode::PlaceholderDay]);
        check("1915", None, Some(1910), &[ProblemCode::YearOnly]);
    }

    #[test]
    fn what_never_was_is_no_date() {
        let never = [
            "Feb 30 1998",
            "Feb 29 1900",
            "Feb 29 1999",
            "Apr 31 1998",
            "Jun 00 1998",
            "Jun 32 1998",
            "1998-13-01",
            "Foo 12 1998",
            "Jun 12",
            "Jun 12 98 1",
            "12",
            "19988",
            "Jun 12 1887",
            "-",
            "Jun 12 +998",
            "Ju 12 1998",
        ];
        for written in never {
            check(written, None, None, &[ProblemCode::BadDate]);
        }
        check("Feb 29 2000", Some("2000-02-29"), Some(2000), &[]);
        check("Feb 29 2016", Some("1916-02-29"), Some(1910), &[ProblemCode::WrongCentury]);
    }
}
