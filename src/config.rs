//! Where settings come from: the configuration file is laid under the environment and the flags.
//!
//! The file's values become the defaults of the command line's own arguments, so that there is one definition of every
//! setting, one check of its value, and no key that is read but not documented.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{ArgMatches, CommandFactory, FromArgMatches};

use crate::cli::Cli;

/// Why the settings are refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("the configuration file {path} cannot be read: {error}")]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// The file is not TOML, or a value has the wrong kind.
    #[error("the configuration file {path} is refused: {reason}")]
    Refused {
        /// Which file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The command line itself is wrong; says so in its own words.
    #[error(transparent)]
    CommandLine(#[from] clap::Error),
}

/// Reads flags, environment and file.
pub fn read(arguments: impl IntoIterator<Item = OsString>) -> Result<Cli, ConfigError> {
    let arguments = with_default_command(arguments.into_iter().collect());
    let matches = Cli::command().try_get_matches_from(&arguments)?;
    let Some(path) = matches.get_one::<PathBuf>("config").cloned().or_else(|| subcommand_config(&matches)) else {
        return Ok(Cli::from_arg_matches(&matches)?);
    };
    let text = std::fs::read_to_string(&path).map_err(|error| ConfigError::Unreadable { path: path.clone(), error })?;
    let refused = |reason: String| ConfigError::Refused { path: path.clone(), reason };
    let settings: toml::Table = text.parse().map_err(|error: toml::de::Error| refused(error.to_string()))?;
    let name = matches.subcommand_name().expect("a command is required").to_owned();
    let command = with_defaults(Cli::command(), &name, &settings).map_err(refused)?;
    Ok(Cli::from_arg_matches(&command.try_get_matches_from(&arguments)?)?)
}

/// Where no command is named, everything is served.
fn with_default_command(mut arguments: Vec<OsString>) -> Vec<OsString> {
    let own = |word: &str| matches!(word, "-h" | "--help" | "-V" | "--version" | "help");
    let names: Vec<String> = Cli::command().get_subcommands().map(|c| c.get_name().to_owned()).collect();
    let named = arguments.iter().skip(1).filter_map(|word| word.to_str()).any(|word| names.iter().any(|n| n == word));
    let asks = arguments.get(1).and_then(|word| word.to_str()).is_some_and(own);
    if !named && !asks {
        arguments.insert(1.min(arguments.len()), "serve".into());
    }
    arguments
}

fn subcommand_config(matches: &ArgMatches) -> Option<PathBuf> {
    matches.subcommand().and_then(|(_, inner)| inner.get_one::<PathBuf>("config").cloned())
}

/// Makes the file's values the defaults of the command's arguments. A key of another command is no error, so that one
/// file can serve all roles; a key of none is.
fn with_defaults(mut command: clap::Command, name: &str, settings: &toml::Table) -> Result<clap::Command, String> {
    for (key, value) in settings {
        let id = key.replace('-', "_");
        let value = as_text(key, value)?;
        let in_common = has_argument(&command, &id);
        let commands: Vec<String> = command
            .get_subcommands()
            .filter(|sub| has_argument(sub, &id))
            .map(|sub| sub.get_name().to_owned())
            .collect();
        if !in_common && commands.is_empty() {
            return Err(format!("there is no setting {key}"));
        }
        if in_common {
            command = command.mut_arg(&id, |argument| argument.default_value(value.clone()));
        } else if commands.iter().any(|sub| sub == name) {
            command =
                command.mut_subcommand(name, |sub| sub.mut_arg(&id, |argument| argument.default_value(value.clone())));
        }
    }
    Ok(command)
}

fn has_argument(command: &clap::Command, id: &str) -> bool {
    id != "config" && command.get_arguments().any(|argument| argument.get_id() == id && argument.get_long().is_some())
}

fn as_text(key: &str, value: &toml::Value) -> Result<String, String> {
    match value {
        toml::Value::String(text) => Ok(text.clone()),
        toml::Value::Integer(number) => Ok(number.to_string()),
        toml::Value::Boolean(flag) => Ok(flag.to_string()),
        toml::Value::Array(items) => {
            let items: Result<Vec<String>, String> = items.iter().map(|item| as_text(key, item)).collect();
            Ok(items?.join(","))
        }
        _ => Err(format!("{key} must be a text, a number, true or false, or a list of texts")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Command;

    fn read_words(words: &[&str]) -> Result<Cli, ConfigError> {
        read(words.iter().map(OsString::from))
    }

    fn file(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        std::fs::write(file.path(), text).expect("write");
        file
    }

    #[test]
    fn without_a_command_everything_is_served() {
        let cli = read_words(&["roost", "--listen", "127.0.0.1:9"]).expect("serve");
        let Command::Serve(args) = cli.command else { panic!("not serve") };
        assert_eq!(args.gateway.listen.port(), 9);
        assert_eq!(args.backend.log, "embedded:");
    }

    #[test]
    fn a_flag_beats_the_file_and_the_file_beats_the_default() {
        let file = file("listen = '127.0.0.1:1'\nlanes = 3\norigins = ['https://a', 'https://b']\nlog-format = 'json'");
        let path = file.path().to_str().expect("utf-8");
        let cli = read_words(&["roost", "serve", "--config", path, "--listen", "127.0.0.1:2"]).expect("good");
        assert_eq!(cli.common.log_format, crate::cli::LogFormat::Json);
        let Command::Serve(args) = cli.command else { panic!("not serve") };
        assert_eq!((args.gateway.listen.port(), args.persist.lanes), (2, Some(3)));
        assert_eq!(args.gateway.origins, ["https://a", "https://b"]);
    }

    #[test]
    fn a_key_of_another_role_is_fine_and_an_unknown_one_is_named() {
        let shared = file("lanes = 3\nregistry = 'redis://h:1'");
        let path = shared.path().to_str().expect("utf-8");
        read_words(&["roost", "migrate", "--config", path]).expect("keys of other commands");
        let wrong = file("colour = 'red'");
        let path = wrong.path().to_str().expect("utf-8");
        let error = read_words(&["roost", "--config", path]).expect_err("unknown").to_string();
        assert!(error.contains("no setting colour"), "{error}");
    }

    #[test]
    fn every_setting_is_documented() {
        let document = include_str!("../docs/configuration.md");
        let command = Cli::command();
        for sub in command.get_subcommands() {
            for argument in sub.get_arguments().chain(command.get_arguments()) {
                let Some(long) = argument.get_long().filter(|&long| long != "help" && long != "version") else {
                    continue;
                };
                assert!(document.contains(&format!("`{long}`")), "docs/configuration.md lacks `{long}`");
                if let Some(variable) = argument.get_env() {
                    let variable = variable.to_str().expect("ASCII");
                    assert!(document.contains(variable), "docs/configuration.md lacks {variable}");
                }
            }
        }
    }
}
