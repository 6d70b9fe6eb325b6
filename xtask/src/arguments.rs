//! The words after a command: flags, options with a value, and at most one name.

use anyhow::{Context, Result, bail};

/// What was given and not yet asked for.
#[derive(Clone, Debug)]
pub struct Arguments(Vec<String>);

impl Arguments {
    /// These words.
    pub fn new(words: impl Iterator<Item = String>) -> Arguments {
        Arguments(words.collect())
    }

    /// Whether this flag is there.
    pub fn flag(&mut self, name: &str) -> bool {
        let before = self.0.len();
        self.0.retain(|word| word != name);
        self.0.len() < before
    }

    /// The word after this option.
    pub fn option(&mut self, name: &str) -> Result<Option<String>> {
        let Some(at) = self.0.iter().position(|word| word == name) else { return Ok(None) };
        if at + 1 >= self.0.len() {
            bail!("`{name}` needs a value");
        }
        self.0.remove(at);
        Ok(Some(self.0.remove(at)))
    }

    /// The name that a command is about; `there_are` names the known ones.
    pub fn name(&mut self, there_are: &[&str]) -> Result<String> {
        let known = there_are.join(", ");
        let at = self.0.iter().position(|word| !word.starts_with('-'));
        let name = at
            .map(|at| self.0.remove(at))
            .with_context(|| format!("a name is missing; there are: {known}"))?;
        if !there_are.contains(&name.as_str()) {
            bail!("there is no `{name}`; there are: {known}");
        }
        Ok(name)
    }

    /// Refuses what nobody asked for.
    pub fn finish(self) -> Result<()> {
        match self.0.first() {
            Some(word) => bail!("`{word}` is not understood here; see `cargo xtask help`"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(words: &[&str]) -> Arguments {
        Arguments::new(words.iter().map(|word| (*word).to_owned()))
    }

    #[test]
    fn flags_options_and_names_come_in_any_order() -> Result<()> {
        let mut given = arguments(&["--long", "kill", "--port", "7"]);
        assert_eq!(given.option("--port")?.as_deref(), Some("7"));
        assert_eq!(given.name(&["hostile", "kill"])?, "kill");
        assert!(given.flag("--long") && !given.flag("--exit"));
        given.finish()
    }

    #[test]
    fn what_is_not_understood_is_refused_by_name() {
        let check = |error: anyhow::Error, expected: &str| assert_eq!(error.to_string(), expected);
        check(
            arguments(&["--prot", "7"]).finish().unwrap_err(),
            "`--prot` is not understood here; see `cargo xtask help`",
        );
        check(arguments(&["--port"]).option("--port").unwrap_err(), "`--port` needs a value");
        check(arguments(&["kil"]).name(&["kill"]).unwrap_err(), "there is no `kil`; there are: kill");
        check(arguments(&[]).name(&["kill"]).unwrap_err(), "a name is missing; there are: kill");
    }
}
