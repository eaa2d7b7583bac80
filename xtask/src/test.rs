//! `cargo xtask test`: installs, builds once, starts the real servers, runs every test, and stops what it started.

mod autobahn;
mod build;
mod drivers;
mod echo;
mod plan;
mod report;

use crate::install::Tools;
use crate::janitor::Janitor;
use crate::libtest::Tally;
use crate::process::{self, Output};
use crate::servers::Servers;
use crate::workspace::Workspace;
use crate::{Result, check, refuse};
use build::{Built, Program};
use plan::{Plan, Stage};
use report::Report;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

#[derive(clap::Args)]
pub struct TestOptions {
    /// Only this stage (check, pure, adapters, services, autobahn, end-to-end, documentation) or package (protocol,
    /// kafka, …); may be given more than once.
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Install and start no servers; what needs them is skipped.
    #[arg(long)]
    no_servers: bool,
    /// Write what the Autobahn suite finds to docs/conformance.md, instead of comparing.
    #[arg(long)]
    write: bool,
    /// Handed on to every test program: a filter, --nocapture, …
    #[arg(last = true)]
    arguments: Vec<String>,
}

/// A hanging stage is killed after this time.
const STAGE_LIMIT: Duration = Duration::from_secs(15 * 60);
const BUILD_LIMIT: Duration = Duration::from_secs(40 * 60);

/// Ends with the line `N passed, N failed`, whatever happened.
pub fn run(options: &TestOptions) -> Result<ExitCode> {
    let mut report = Report::default();
    if let Err(message) = run_all(options, &mut report) {
        println!("\n{message}");
        report.total.fail(message.lines().next().unwrap_or_default());
    }
    report.print();
    Ok(if report.total.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What every stage is run with.
struct Context<'a> {
    workspace: &'a Workspace,
    janitor: &'a Janitor,
    plan: &'a Plan,
    environment: Vec<(&'static str, String)>,
    options: &'a TestOptions,
}

fn run_all(options: &TestOptions, report: &mut Report) -> Result<()> {
    let workspace = Workspace::load()?;
    let plan = Plan::new(&workspace, &options.only)?;
    let logs = workspace.target.join("test-logs").join(format!("run-{}", std::process::id()));
    let janitor = Janitor::start()?;
    let tools = if options.no_servers {
        report.note("the real servers were left out: --no-servers");
        None
    } else if plan.servers().any() {
        let tools = report.timed("installation", || Tools::ensure(&workspace))?;
        report.versions = tools.versions();
        Some(tools)
    } else {
        None
    };
    if plan.has(Stage::Check) {
        heading(report, Stage::Check);
        let begun = Instant::now();
        let tally = check::check(&workspace, &janitor, begun + STAGE_LIMIT);
        report.stage(Stage::Check.name(), begun.elapsed(), &tally);
    }
    if plan.needs_build() {
        println!("\n== building, once for all stages");
        let built =
            report.timed("build", || build::build(&workspace, &janitor, &plan, Instant::now() + BUILD_LIMIT))?;
        let servers = match &tools {
            Some(tools) => Some(report.timed("servers", || Servers::start(&janitor, tools, &plan.servers(), &logs))?),
            None => None,
        };
        let skips = janitor.folder().join("skipped");
        let environment = environment(&built, tools.as_ref(), servers.as_ref(), &logs, &skips)?;
        let context = Context { workspace: &workspace, janitor: &janitor, plan: &plan, environment, options };
        run_stages(&context, &built, tools.is_some(), report);
        report.skips_from(&skips);
    }
    if report.total.failed == 0 {
        let _ = std::fs::remove_dir_all(&logs);
    } else if logs.exists() {
        report.note(&format!("logs of the servers: {}", logs.display()));
    }
    Ok(())
}

fn heading(report: &Report, stage: Stage) {
    println!(
        "\n== stage {} of {}: {} ({} failed so far)",
        stage.number(),
        Stage::ALL.len(),
        stage.name(),
        report.total.failed
    );
}

/// The variables by which the tests find the servers, the program, and each other's leavings.
fn environment(
    built: &Built,
    tools: Option<&Tools>,
    servers: Option<&Servers>,
    logs: &Path,
    skips: &Path,
) -> Result<Vec<(&'static str, String)>> {
    std::fs::create_dir_all(logs).map_err(|error| format!("{}: {error}", logs.display()))?;
    let mut variables = servers.map(Servers::environment).unwrap_or_default();
    variables.push(("ROOST_TEST_LOGS", logs.display().to_string()));
    variables.push(("ROOST_TEST_SKIPS", skips.display().to_string()));
    if cfg!(target_os = "linux") {
        variables.push(("ROOST_TEST_REFUSE_IO_URING", refuse::own_program().display().to_string()));
    }
    if let Some(program) = &built.roost {
        variables.push(("ROOST_TEST_BIN", program.display().to_string()));
    }
    if let Some(tools) = tools {
        variables.push(("ROOST_TEST_PYTHON", tools.python.display().to_string()));
        variables.push(("ROOST_REQUIRE_SERVERS", "1".to_owned()));
    }
    Ok(variables)
}

fn run_stages(context: &Context<'_>, built: &Built, with_servers: bool, report: &mut Report) {
    for stage in Stage::ALL {
        if stage == Stage::Check || !context.plan.has(stage) {
            continue;
        }
        heading(report, stage);
        let begun = Instant::now();
        let mut tally = Tally::default();
        if stage == Stage::Documentation {
            run_documentation(context, begun + STAGE_LIMIT, &mut tally);
        } else if stage == Stage::Autobahn {
            run_autobahn(context, built, begun + STAGE_LIMIT, &mut tally);
        } else {
            let programs = built.programs.iter().filter(|program| Stage::of(&program.package) == stage);
            for program in programs {
                if !with_servers && Stage::is_only_server(&program.package) {
                    tally.skip(format!("{}: needs its server", program.package));
                    continue;
                }
                run_variants(context, built, program, begun + STAGE_LIMIT, &mut tally);
            }
        }
        report.stage(stage.name(), begun.elapsed(), &tally);
    }
}

fn run_variants(context: &Context<'_>, built: &Built, program: &Program, deadline: Instant, tally: &mut Tally) {
    for variant in drivers::variants(program) {
        let title = format!("{}{}", program.title(), variant.title);
        if Instant::now() >= deadline {
            tally.skip(format!("{title}: the stage is over its time limit"));
        } else if let Some(obstacle) = variant.obstacle(context.janitor, built.echo.as_deref()) {
            tally.skip(format!("{title}: {obstacle}"));
        } else {
            run_program(context, program, variant.command(program), &title, deadline, tally);
        }
    }
}

fn run_autobahn(context: &Context<'_>, built: &Built, deadline: Instant, tally: &mut Tally) {
    let stage = autobahn::Stage {
        workspace: context.workspace,
        janitor: context.janitor,
        echo: built.echo.as_deref(),
        may_install: !context.options.no_servers,
        write: context.options.write,
        deadline,
    };
    autobahn::run(&stage, tally);
}

fn run_program(
    context: &Context<'_>,
    program: &Program,
    mut command: Command,
    title: &str,
    deadline: Instant,
    tally: &mut Tally,
) {
    println!("\n-- {title}");
    command.args(&context.options.arguments).current_dir(&program.folder);
    // As cargo sets them for a test program.
    command.env("CARGO_MANIFEST_DIR", &program.folder).env("CARGO_PKG_NAME", &program.package);
    command.env("CARGO_PKG_VERSION", &program.version);
    run_counted(context, &mut command, title, deadline, tally);
}

fn run_documentation(context: &Context<'_>, deadline: Instant, tally: &mut Tally) {
    let mut command = context.workspace.cargo();
    command.args(["test", "--doc", "--no-fail-fast"]).args(context.plan.selection());
    run_counted(context, &mut command, "documentation examples", deadline, tally);
}

fn run_counted(context: &Context<'_>, command: &mut Command, title: &str, deadline: Instant, tally: &mut Tally) {
    command.envs(context.environment.iter().map(|(name, value)| (name, value)));
    if std::env::var_os("INSTA_UPDATE").is_none() {
        // A test run reads the committed snapshots; it writes none.
        command.env("INSTA_UPDATE", "no");
    }
    let before = tally.clone();
    let outcome = process::run(context.janitor, command, deadline, &mut |output, line| match output {
        Output::Standard => {
            println!("{line}");
            tally.line(line);
        }
        Output::Error => eprintln!("{line}"),
    });
    match outcome {
        Ok(ended) if ended.timed_out => {
            println!("{title} was killed: its stage is over the limit of {} s", STAGE_LIMIT.as_secs());
            tally.program_ended(title, &before, false, "timed out");
        }
        Ok(ended) => tally.program_ended(title, &before, ended.success, &ended.status),
        Err(message) => tally.fail(format!("{title}: {message}")),
    }
}
