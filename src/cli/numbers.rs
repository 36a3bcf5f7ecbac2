//! Numbers on the command line: what follows a flag for one is looked at as a number, and a mistake
//! says which numbers are meant, and of what.

use std::any::TypeId;
use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, Command, CommandFactory, FromArgMatches};

/// Reads a command line, the program's name first.
///
/// # Errors
/// Clap's: a mistake, or a request for help or the version.
pub fn read<T: CommandFactory + FromArgMatches>(line: Vec<OsString>) -> Result<T, clap::Error> {
    let mut command = take_what_follows(T::command());
    let matches = command.try_get_matches_from_mut(&line).map_err(|mistake| {
        // Flags have their names as they are shown only then.
        command.build();
        match explain(&mistake, within(&command, &line)) {
            Some(message) => clap::Error::raw(ErrorKind::ValueValidation, message),
            None => mistake,
        }
    })?;
    T::from_arg_matches(&matches)
}

/// Without this `--ctx -1` would be a flag `--ctx` without a number, and a flag `-1` that nobody knows.
fn take_what_follows(command: Command) -> Command {
    let takes = |arg: Arg| match meant(&arg) {
        Some(_) => arg.allow_negative_numbers(true),
        None => arg,
    };
    command.mut_args(takes).mut_subcommands(take_what_follows)
}

/// Which numbers a flag takes, if it takes numbers.
fn meant(arg: &Arg) -> Option<String> {
    let of = arg.get_value_parser().type_id();
    if of == TypeId::of::<usize>() || of == TypeId::of::<u64>() {
        Some(format!("a whole number from 0 to {}", u64::MAX))
    } else if of == TypeId::of::<u16>() {
        Some(format!("a whole number from 0 to {}", u16::MAX))
    } else if of == TypeId::of::<f64>() || of == TypeId::of::<f32>() {
        Some("a number such as 0.5".to_owned())
    } else {
        None
    }
}

/// What to say of a number that is none.
fn explain(mistake: &clap::Error, command: &Command) -> Option<String> {
    let said = |kind| match mistake.get(kind) {
        Some(ContextValue::String(text)) => Some(text.as_str()),
        _ => None,
    };
    if mistake.kind() != ErrorKind::ValueValidation {
        return None;
    }
    let (flag, value) = (said(ContextKind::InvalidArg)?, said(ContextKind::InvalidValue)?);
    let arg = command.get_arguments().find(|arg| arg.to_string() == flag)?;
    let name = flag.split(' ').next().unwrap_or(flag);
    let mut message = format!("{name} is {value:?}: it must be {}", meant(arg)?);
    if let Some(help) = arg.get_help() {
        message.push_str(&format!(" ({name}: {})", help.to_string().trim_end_matches('.')));
    }
    Some(message)
}

/// The subcommand that a line is for.
fn within<'a>(command: &'a Command, line: &[OsString]) -> &'a Command {
    line.iter().skip(1).fold(command, |command, word| {
        word.to_str().and_then(|word| command.find_subcommand(word)).unwrap_or(command)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::Args;
    use crate::cli::serve::ServeArgs;

    /// Every flag for a number, with the words that lead to it.
    fn flags(command: &Command, path: &[String]) -> Vec<Vec<String>> {
        let own = command.get_arguments().filter(|arg| meant(arg).is_some());
        let own = own.filter_map(|arg| Some(format!("--{}", arg.get_long()?)));
        let mut found: Vec<Vec<String>> = own.map(|flag| [path, &[flag]].concat()).collect();
        for sub in command.get_subcommands() {
            found.extend(flags(sub, &[path, &[sub.get_name().to_owned()]].concat()));
        }
        found
    }

    fn mistake<T: CommandFactory + FromArgMatches>(words: &[String]) -> Option<String> {
        let line = [&["ds4".to_owned()], words].concat();
        read::<T>(line.into_iter().map(OsString::from).collect())
            .err()
            .map(|error| error.render().to_string())
    }

    fn all<T: CommandFactory + FromArgMatches>() -> usize {
        let flags = flags(&T::command(), &[]);
        for path in &flags {
            let flag = path.last().unwrap();
            for value in ["-1", "NaN", "99999999999999999999999", "1e308", "", "0x10"] {
                let words = [path.as_slice(), &[value.to_owned()]].concat();
                let Some(said) = mistake::<T>(&words) else {
                    // A number of the kind that is meant; whether it is in range is asked later.
                    assert!(value.parse::<f64>().is_ok(), "{words:?} is taken");
                    continue;
                };
                // Needs an argument that is not given: the number was one.
                if said.contains("required arguments") {
                    continue;
                }
                let head = format!("error: {flag} is {value:?}: it must be a ");
                assert!(said.starts_with(&head), "{words:?}: {said}");
                assert!(said.contains(&format!("({flag}: ")), "{words:?}: {said}");
            }
        }
        flags.len()
    }

    #[test]
    fn whatever_stands_for_a_number_the_flag_and_what_it_wants_are_named() {
        assert!(all::<ServeArgs>() >= 18);
        assert!(all::<Args>() >= 25);
    }

    #[test]
    fn numbers_that_are_some_are_taken() {
        let line = |words: &str| words.split(' ').map(OsString::from).collect::<Vec<_>>();
        let args = read::<Args>(line("ds4 --temp -1 --top-p NaN -n 5 -c7 -p -1")).unwrap();
        assert_eq!((args.talk.temp, args.talk.tokens, args.talk.ctx), (-1.0, 5, 7));
        assert!(args.talk.top_p.is_nan());
        assert_eq!(args.talk.prompt.as_deref(), Some("-1"));
    }
}
