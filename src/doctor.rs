//! `roost doctor`: checks each dependency and says in words what is wrong and what to type.

use crate::cli::DoctorArgs;
use crate::compose::{self, Problem};

/// One line of the findings.
struct Finding {
    what: &'static str,
    /// What was found; or what is wrong, and what to type.
    outcome: Result<String, (String, String)>,
}

/// Checks log, store and registry one after the other; an error if anything is wrong.
pub async fn run(args: &DoctorArgs) -> Result<(), Problem> {
    let mut findings = Vec::new();
    let log = compose::check_log(&args.backend).await;
    let log_id = log.as_ref().ok().map(|(id, _)| id.clone());
    let partitions = log.as_ref().ok().map(|&(_, partitions)| partitions);
    findings.push(Finding {
        what: "log",
        outcome: log
            .map(|(id, partitions)| format!("{id} answers and has {partitions} partitions"))
            .map_err(|problem| advise(&problem, &log_advice(&args.backend.log))),
    });
    let store = compose::check_store(&args.backend, log_id.as_deref()).await;
    findings.push(Finding { what: "store", outcome: judge_store(store, partitions, &args.backend.store) });
    findings.push(Finding { what: "registry", outcome: check_registry(&args.registry.registry).await });
    let wrong = findings.iter().filter(|finding| finding.outcome.is_err()).count();
    for finding in &findings {
        match &finding.outcome {
            Ok(found) => println!("ok     {:<9} {found}", finding.what),
            Err((problem, advice)) => {
                println!("WRONG  {:<9} {problem}", finding.what);
                println!("       {:<9} {advice}", "");
            }
        }
    }
    if wrong == 0 {
        println!("everything that was checked is well");
        return Ok(());
    }
    Err(Problem::Other(format!("{wrong} of {} checks failed", findings.len())))
}

fn judge_store(
    found: Result<Option<u32>, Problem>,
    partitions: Option<u32>,
    url: &str,
) -> Result<String, (String, String)> {
    match found {
        Ok(Some(migrated)) if partitions.is_some_and(|partitions| partitions != migrated) => Err((
            format!("it was migrated for {migrated} partitions, but the log has {}", partitions.unwrap_or(0)),
            "use the log it was migrated for; the count cannot be changed".into(),
        )),
        Ok(Some(migrated)) => Ok(format!("answers, is durable and migrated for {migrated} partitions")),
        Ok(None) => Ok("answers and is durable; whether it fits the log was not checked".into()),
        Err(problem) => Err(advise(&problem, &store_advice(url))),
    }
}

async fn check_registry(url: &str) -> Result<String, (String, String)> {
    let clock: std::sync::Arc<dyn roost_ports::Clock> = std::sync::Arc::new(roost_ports::SystemClock::new());
    let advice = "is Redis running there? Try: redis-cli -u ADDRESS ping";
    let registry = compose::registry(url, &clock).map_err(|problem| advise(&problem, advice))?;
    match registry.check().await {
        Ok(()) => Ok("answers".into()),
        Err(error) => Err((error.to_string(), advice.into())),
    }
}

fn advise(problem: &Problem, advice: &str) -> (String, String) {
    let advice = match problem {
        // These say themselves what to do.
        Problem::Setting(_) | Problem::Locked(_) => "correct the setting and run `roost doctor` again".to_owned(),
        Problem::Log(roost_ports::log::LogError::Refused(_))
        | Problem::Store(roost_ports::store::StoreError::Refused(_) | roost_ports::store::StoreError::NotFound) => {
            "run `roost migrate` with the same settings, if it has not been run yet".to_owned()
        }
        _ => advice.to_owned(),
    };
    (problem.to_string(), advice)
}

fn log_advice(url: &str) -> String {
    if url.starts_with("kafka:") {
        "is Kafka running there, and does it advertise an address that this machine reaches? \
         Try: kcat -b HOST:PORT -L"
            .into()
    } else {
        "look at the folder's owner and at the free space: df -h .".into()
    }
}

fn store_advice(url: &str) -> String {
    if url.starts_with("postgres") {
        "is PostgreSQL running there, and may this user connect? Try: psql ADDRESS -c 'select 1'".into()
    } else {
        "look at the folder's owner and at the free space: df -h .".into()
    }
}
