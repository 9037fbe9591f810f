//! `portcullis audit`: records of the audit trail, read back.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;

use crate::telemetry::audit::verify::{Found, Verdict, Verifier};

/// The longest line that is read. A record of the largest request that can be is below it.
const LONGEST_LINE: u64 = 16 << 20;

/// Arguments of `portcullis audit`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Check that no record was changed, left out or moved, and say where one was.
    ///
    /// Lines that are no records are passed over, so the output of `kubectl logs` can be given as it is. Exit
    /// codes: 0 every chain is whole from its first record on; 1 nothing could be checked; 2 wrong usage; 3 a chain
    /// is broken; 4 nothing is broken, but the beginning of a chain is missing or a line was cut off.
    Verify {
        /// The file; left out or `-`: standard input.
        #[arg(value_name = "FILE")]
        file: Option<PathBuf>,
    },
}

/// Checks and reports. The exit code is the verdict.
///
/// # Errors
/// When the input cannot be read or holds no record.
pub fn run(arguments: &Arguments, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    let Command::Verify { file } = &arguments.command;
    let mut verifier = Verifier::default();
    match file.as_ref().filter(|path| path.as_os_str() != "-") {
        Some(path) => {
            let file = File::open(path).with_context(|| format!("failed to open {}", path.display()))?;
            read(BufReader::new(file), &mut verifier)
                .with_context(|| format!("failed to read {}", path.display()))?;
        }
        None => read(std::io::stdin().lock(), &mut verifier).context("failed to read standard input")?,
    }
    report(&verifier, out)?;
    Ok(match verifier.verdict() {
        Verdict::Whole => ExitCode::SUCCESS,
        Verdict::Nothing => anyhow::bail!(
            "no audit record was found: give the standard output of the controller, such as `kubectl logs` shows it"
        ),
        Verdict::Broken => ExitCode::from(3),
        Verdict::Partial => ExitCode::from(4),
    })
}

fn read(mut input: impl BufRead, verifier: &mut Verifier) -> std::io::Result<()> {
    let mut line = Vec::new();
    loop {
        line.clear();
        if input.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        verifier.line(&String::from_utf8_lossy(&line));
    }
}

fn report(verifier: &Verifier, out: &mut impl Write) -> std::io::Result<()> {
    for (id, chain) in verifier.chains() {
        let Found {
            records, repeated, rewritten, dropped, first_seq, last_seq, first_time, last_time, ..
        } = chain;
        let verdict = if chain.breaks.is_empty() { "whole" } else { "BROKEN" };
        writeln!(
            out,
            "chain {id}: {verdict}; {records} records, {first_seq} to {last_seq}, {first_time} to {last_time}"
        )?;
        if *first_seq > 0 {
            writeln!(out, "  its beginning is not here: records 0 to {} are missing", first_seq - 1)?;
        }
        if *dropped > 0 {
            writeln!(out, "  {dropped} records were lost when they were made, and the chain says so")?;
        }
        if *repeated > 0 {
            writeln!(out, "  {repeated} lines repeat records that stand before them")?;
        }
        if *rewritten > 0 {
            writeln!(out, "  {rewritten} records were written anew on the way, with the same content")?;
        }
        if chain.ended {
            writeln!(out, "  ended by the controller: nothing is missing at its end")?;
        } else {
            writeln!(
                out,
                "  without an end: the controller still runs or was killed, or the end is not here"
            )?;
        }
        for found in &chain.breaks {
            writeln!(out, "  line {}, record {}: {}", found.line, found.seq, found.what)?;
        }
    }
    for line in verifier.torn() {
        writeln!(out, "line {line}: begins as a record and was cut off")?;
    }
    if verifier.others() > 0 {
        writeln!(out, "{} lines are no records", verifier.others())?;
    }
    Ok(())
}
