//! What a film is here, and which field of a record becomes which fact.

use keiko_sdk::Failure;
use serde::Serialize;
use serde_json::Value;

use crate::date::Release;
use crate::reader::Reader;

/// Sums of money up to a million million dollars; the largest in the list is under 3,000 million.
const DOLLARS_MAX: u64 = 1_000_000_000_000;
/// Sixteen hours, more than any film that ran in a cinema.
const RUNNING_TIME_MIN_MAX: u64 = 1_000;
const VOTES_MAX: u64 = 1_000_000_000;

/// Ratings of the Motion Picture Association, and its word for none.
const MPAA_RATINGS: [&str; 6] = ["G", "PG", "PG-13", "R", "NC-17", "Not Rated"];

/// One film, every fact in one type and one spelling. Money is in whole dollars.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Film {
    /// The name as people write it: article first, one blank between words.
    pub title: String,
    /// ISO 8601, `1998-06-12`.
    pub release_date: Option<String>,
    /// Known also where only the year is.
    pub release_year: Option<u16>,
    /// The decade's first year, 1990.
    pub decade: Option<u16>,
    /// Taken in cinemas of the United States.
    pub us_gross: Option<u64>,
    /// Taken in all cinemas.
    pub worldwide_gross: Option<u64>,
    /// Taken for DVDs in the United States.
    pub us_dvd_sales: Option<u64>,
    /// Spent on making it.
    pub production_budget: Option<u64>,
    /// Worldwide gross less production budget, when both are known.
    pub profit: Option<i64>,
    /// Whole minutes.
    pub running_time_min: Option<u64>,
    /// G, PG, PG-13, R, NC-17 or Not Rated.
    pub mpaa_rating: Option<String>,
    /// Percent.
    pub rotten_tomatoes_rating: Option<u64>,
    /// 1 to 10.
    pub imdb_rating: Option<f64>,
    /// Votes behind that rating.
    pub imdb_votes: Option<u64>,
    /// Who brought it to the cinemas.
    pub distributor: Option<String>,
    /// What it was made from: a screenplay, a book, a play.
    pub source: Option<String>,
    /// `Thriller/Suspense` is two.
    pub genres: Vec<String>,
    /// Fiction or fact, of which kind.
    pub creative_type: Option<String>,
    /// The director's name.
    pub director: Option<String>,
    /// In the order of the facts above; then fields that no film has, by name.
    pub problems: Vec<Problem>,
}

/// Something about one field of the record that a reader of the result should know.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Problem {
    /// The field's name in the record.
    pub field: String,
    /// What is wrong.
    pub problem: ProblemCode,
    /// What stood in the record, texts cut at 100 characters; absent when nothing did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<Value>,
}

/// Everything that can be wrong with a field. The first group makes the fact null, the second mends it, the third
/// leaves it as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ProblemCode {
    /// Absent, null, or blank.
    Missing,
    /// Neither a text nor a number, or not the one of them that belongs here.
    WrongType,
    /// A text that is no number where one belongs.
    NotANumber,
    /// A part of one where a whole number belongs.
    NotWhole,
    /// A number no film has, such as a negative budget or a rating of 11.
    OutOfRange,
    /// Money of 0: in this list it means that nobody knew.
    Zero,
    /// Longer than 500 characters.
    TooLong,
    /// A word for "unknown", or a word that is none of those the field has.
    UnknownValue,
    /// A date that cannot be read or never was.
    BadDate,
    /// A date that stands for "unknown": Dec 31 1969, or a word such as TBD.
    UnknownDate,

    /// A number for a title: 1941.
    NumberAsTitle,
    /// A text for a number: "$1,500".
    NumberAsText,
    /// White space at the ends, or more than one blank in a row.
    Spacing,
    /// Letters of another character set: LÈon for Léon.
    GarbledText,
    /// Quotation marks doubled by an export to CSV.
    DoubledQuotes,
    /// The article at the end: Barbarians, The.
    InvertedTitle,
    /// A year after the list was made: 2033 for 1933.
    WrongCentury,

    /// Jan 1 or Dec 31, which in this list mostly means that only the year was known.
    PlaceholderDay,
    /// Only the year is known, so there is no release date.
    YearOnly,
    /// More money in the United States than in the world.
    UsAboveWorldwide,
    /// A field that film records do not have; it is left out.
    UnknownField,
}

impl Film {
    /// Reads a record, or says why it cannot be a film's.
    pub fn from_record(record: &Value) -> Result<Self, Failure> {
        let Value::Object(fields) = record else {
            let found = type_name(record);
            return Err(Failure::invalid_input(format!("not a film record: {found} instead of an object")));
        };
        let mut read = Reader::new(fields);
        let title = read.title("Title")?;
        let release = read.date("Release Date");
        let us_gross = read.money("US Gross", DOLLARS_MAX);
        let worldwide_gross = read.money("Worldwide Gross", DOLLARS_MAX);
        if us_gross > worldwide_gross && worldwide_gross.is_some() {
            read.note("US Gross", ProblemCode::UsAboveWorldwide);
        }
        let us_dvd_sales = read.money("US DVD Sales", DOLLARS_MAX);
        let production_budget = read.money("Production Budget", DOLLARS_MAX);
        let mut film = Self {
            title,
            release_date: release.and_then(Release::date),
            release_year: release.map(Release::year),
            decade: release.map(Release::decade),
            us_gross,
            worldwide_gross,
            us_dvd_sales,
            production_budget,
            profit: profit(worldwide_gross, production_budget),
            running_time_min: read.whole("Running Time min", 1..=RUNNING_TIME_MIN_MAX),
            mpaa_rating: read.word("MPAA Rating", &MPAA_RATINGS),
            rotten_tomatoes_rating: read.whole("Rotten Tomatoes Rating", 0..=100),
            imdb_rating: read.decimal("IMDB Rating", 1.0..=10.0),
            imdb_votes: read.whole("IMDB Votes", 0..=VOTES_MAX),
            distributor: read.text("Distributor"),
            source: read.text("Source"),
            genres: read.list("Major Genre", '/'),
            creative_type: read.text("Creative Type"),
            director: read.text("Director"),
            problems: Vec::new(),
        };
        film.problems = read.finish();
        Ok(film)
    }
}

fn profit(worldwide_gross: Option<u64>, production_budget: Option<u64>) -> Option<i64> {
    Some(worldwide_gross?.cast_signed() - production_budget?.cast_signed())
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
