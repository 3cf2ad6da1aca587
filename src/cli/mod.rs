//! Layer 7: the commands; one file each. The only place that prints and exits.
//!
//! Exit codes: 0 all is well · 1 a problem was found, or the command failed · 2 the command line was wrong.
//! Answers go to standard output, complaints to standard error.

mod backup;
mod ban;
mod certs;
mod check;
mod client;
mod config_show;
mod deploy;
mod hash_password;
mod issue;
mod load;
mod patch;
mod privacy;
mod reload;
mod run;
mod status;
mod suggest;
mod table;
mod wire;

use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::{Args, Parser, Subcommand, ValueEnum};
use serde_json::Value;

/// All is well.
pub const EXIT_OK: u8 = 0;
/// A problem was found, or the command failed.
pub const EXIT_PROBLEM: u8 = 1;
/// The command line was wrong.
pub const EXIT_USAGE: u8 = 2;

const EXIT_HELP: &str = "Exit codes: 0 all is well, 1 a problem was found or the command failed, 2 the command line \
                         was wrong.";

/// Edge load balancer: HTTPS, routing, limits and live reload for many sites.
#[derive(Debug, Parser)]
#[command(name = "tidegate", version, after_help = EXIT_HELP)]
struct Cli {
    /// Without one: run
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run in the foreground until a signal ends it
    Run {
        #[command(flatten)]
        config: ConfigFile,
    },
    /// Check the configuration: every problem, with its place and what to do
    Check {
        #[command(flatten)]
        config: ConfigFile,
        #[command(flatten)]
        output: Output,
    },
    /// Make a running Tidegate read its configuration again, and say what changed
    Reload {
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        output: Output,
    },
    /// Show what a running Tidegate serves, and what is wrong
    Status {
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        output: Output,
        /// Show one site only, by its name or one of its hosts
        #[arg(long, value_name = "NAME")]
        site: Option<String>,
    },
    /// Put other endpoints behind a site, once they are healthy
    Deploy(deploy::Deploy),
    /// Watch how clients use the sites for a while, and propose limits
    Suggest(suggest::Suggest),
    /// Turn an address or a network away from all sites for a time
    Ban(ban::Ban),
    /// Let an address or a network in again
    Unban(ban::Unban),
    /// Show who is banned, why and until when
    Bans(ban::Bans),
    /// Show the certificate of every site: where from, until when, what is next, what went wrong
    #[command(args_conflicts_with_subcommands = true)]
    Certs {
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        output: Output,
        /// Show what happened to automatic certificates lately instead
        #[arg(long)]
        events: bool,
        #[command(subcommand)]
        command: Option<CertsCommand>,
    },
    /// Virtual patches: what is in force, and packs before they are
    Patch {
        #[command(subcommand)]
        command: patch::Patch,
    },
    /// Show what is kept about people, where, for how long, and what bounds it
    Privacy(privacy::Privacy),
    /// Make a line for a file of users: the hash of a password that is typed, or comes from a pipe
    HashPassword(hash_password::HashPassword),
    /// Look into the configuration in force
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
}

#[derive(Debug, Subcommand)]
enum CertsCommand {
    /// Show the queue of orders, when each is expected, and what is left of the budget
    Plan {
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        output: Output,
    },
    /// Order a site's certificate now, whatever its age
    Renew {
        /// The site
        name: String,
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        output: Output,
    },
    /// Issue a short-lived certificate of the internal CA for an endpoint inside
    Issue(issue::Issue),
    /// Write accounts, certificates and keys into one encrypted file: a backup, or to move to another machine
    Export(backup::Export),
    /// Take accounts, certificates and keys from such a file; a running Tidegate takes them over
    Import(backup::Import),
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Print the settings of a running Tidegate
    Show {
        #[command(flatten)]
        target: Target,
        #[command(flatten)]
        output: Output,
        /// Also print the settings that nobody wrote: every value in force
        #[arg(long)]
        effective: bool,
        /// Also print where each value was said
        #[arg(long)]
        origin: bool,
    },
}

/// Which configuration.
#[derive(Debug, Args)]
struct ConfigFile {
    /// Configuration file [default: config/tidegate.toml, else tidegate.toml, else /etc/tidegate/tidegate.toml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Which running Tidegate.
#[derive(Debug, Args)]
struct Target {
    #[command(flatten)]
    config: ConfigFile,
    /// Admin socket [default: the one the configuration names]
    #[arg(long, value_name = "SOCKET", conflicts_with = "config")]
    socket: Option<PathBuf>,
}

/// How to answer.
#[derive(Debug, Args)]
struct Output {
    /// For people or for programs
    #[arg(long, value_enum, default_value = "human")]
    format: Format,
}

/// How to answer, with a short way to ask for JSON.
#[derive(Debug, Args)]
struct ShortOutput {
    #[command(flatten)]
    long: Output,
    /// The same as --format json
    #[arg(long, conflicts_with = "format")]
    json: bool,
}

impl ShortOutput {
    fn format(&self) -> Format {
        if self.json { Format::Json } else { self.long.format }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Human,
    Json,
}

/// Runs the command line, the program's name first, and gives the exit code.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print(); // a closed terminal is no reason for another exit code
            return u8::try_from(error.exit_code()).unwrap_or(EXIT_USAGE).into();
        }
    };
    // The main job needs no word: `cargo run --release` is all a newcomer types.
    let ended = dispatch(cli.command.unwrap_or(Command::Run { config: ConfigFile { config: None } }));
    let code = ended.unwrap_or_else(|problem| {
        complain(&problem);
        EXIT_PROBLEM
    });
    if code == EXIT_OK && UNPRINTED.load(Ordering::Relaxed) { EXIT_PROBLEM.into() } else { code.into() }
}

/// Something that was asked for could not be written out.
static UNPRINTED: AtomicBool = AtomicBool::new(false);

fn dispatch(command: Command) -> Result<u8, String> {
    match command {
        Command::Run { config } => run::run(&config.path()?),
        Command::Check { config, output } => check::check(&config.path()?, output.format),
        Command::Reload { target, output } => reload::reload(&target.socket()?, output.format),
        Command::Status { target, output, site } => {
            status::status(&target.socket()?, output.format, site.as_deref())
        }
        Command::Deploy(asked) => deploy::deploy(asked),
        Command::Suggest(asked) => suggest::suggest(asked),
        Command::Privacy(asked) => privacy::privacy(asked),
        Command::Ban(asked) => ban::ban(asked),
        Command::Unban(asked) => ban::unban(asked),
        Command::Bans(asked) => ban::bans(asked),
        Command::Certs { target, output, events: true, command: None } => {
            certs::events(&target.socket()?, output.format)
        }
        Command::Certs { target, output, command: None, .. } => {
            certs::list_all(&target.socket()?, output.format)
        }
        Command::Certs { command: Some(CertsCommand::Plan { target, output }), .. } => {
            certs::plan(&target.socket()?, output.format)
        }
        Command::Certs { command: Some(CertsCommand::Renew { name, target, output }), .. } => {
            certs::renew(&target.socket()?, output.format, &name)
        }
        Command::Certs { command: Some(CertsCommand::Issue(asked)), .. } => issue::issue(asked),
        Command::Certs { command: Some(CertsCommand::Export(asked)), .. } => backup::export(asked),
        Command::Certs { command: Some(CertsCommand::Import(asked)), .. } => backup::import(asked),
        Command::HashPassword(asked) => hash_password::hash_password(&asked),
        Command::Patch { command } => patch::patch(command),
        Command::Config { command: ConfigCommand::Show { target, output, effective, origin } } => {
            config_show::show(&target.socket()?, output.format, effective, origin)
        }
    }
}

/// Where the configuration is looked for when nobody names it.
const CONFIG_PLACES: [&str; 3] = ["config/tidegate.toml", "tidegate.toml", "/etc/tidegate/tidegate.toml"];

impl ConfigFile {
    fn path(self) -> Result<PathBuf, String> {
        self.place()
    }

    fn place(&self) -> Result<PathBuf, String> {
        let found = || CONFIG_PLACES.iter().map(PathBuf::from).find(|path| path.is_file());
        self.config.clone().or_else(found).ok_or_else(|| {
            format!("no configuration found at {}: name one with --config FILE", CONFIG_PLACES.join(", "))
        })
    }
}

impl Target {
    fn socket(self) -> Result<PathBuf, String> {
        match self.socket {
            Some(socket) => Ok(socket),
            None => {
                let config = self
                    .config
                    .path()
                    .map_err(|problem| format!("{problem}, or the socket with --socket"))?;
                wire::admin_socket(&config)
            }
        }
    }
}

/// Prints an answer. A reader that has gone (`tidegate status | head`) is no error; a disk that is full is one.
fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    if let Err(error) = written
        && error.kind() != std::io::ErrorKind::BrokenPipe
    {
        UNPRINTED.store(true, Ordering::Relaxed);
        complain(&format!("the answer could not be written: {error}"));
    }
}

/// Prints JSON as it came.
fn print_json(value: &Value) {
    print(&format!("{value:#}\n"));
}

fn complain(problem: &str) {
    let mut out = std::io::stderr().lock();
    let _ = writeln!(out, "tidegate: {}", problem.trim_end());
}

/// Whether answers may have colour: on a terminal, unless `NO_COLOR` says otherwise (no-color.org).
fn colour() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

#[cfg(test)]
mod tests;
