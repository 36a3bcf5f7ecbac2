//! One forward pass for many jobs.

use super::choose::guarded;
use super::running::Running;
use super::{Engine, EngineError};
use crate::candle::Tensor;
use crate::model::{Input, Logits};
use crate::ops::{shortlists, Reach, Shortlist};

/// What a forward pass did for one job.
pub(super) enum Ran {
    /// It had no part in it.
    Not,
    /// Some of its tokens were run.
    Part,
    /// All that are known were run: these are the scores of the next.
    All(Scores),
    /// It cannot go on.
    Failed(EngineError),
}

/// Of the next token.
pub(super) enum Scores {
    /// Of every token of the vocabulary.
    Logits(Vec<f32>),
    /// Of those that can be chosen.
    Listed(Shortlist),
}

/// A pass for which there was no memory is tried again with one token in so many.
const LESS: usize = 8;

/// One forward pass of those that have a share of it. If it fails for all, each has one of its
/// own, of at most `chunk` tokens at a time, so that only the one that it fails for has to go. If it fails
/// for want of memory, `relieve` gives up what can be done without first.
pub(super) fn run(
    engine: &Engine,
    running: &mut [Running],
    shares: &[usize],
    chunk: usize,
    relieve: impl FnOnce(),
) -> Vec<Ran> {
    let mut members: Vec<_> =
        running.iter_mut().zip(shares).filter(|(_, share)| **share > 0).collect();
    let goals: Vec<usize> =
        members.iter().map(|(running, share)| running.cache.len() + **share).collect();
    let ran = match forward(engine, &mut members) {
        Ok(ran) => ran,
        Err(error) if members.len() == 1 && !error.is_out_of_memory() => vec![Ran::Failed(error)],
        Err(error) => {
            tracing::warn!(%error, jobs = members.len(), "a pass failed: one by one");
            let chunk = match error.is_out_of_memory() {
                true => {
                    relieve();
                    chunk.div_ceil(LESS)
                }
                false => chunk,
            };
            let alone = members.into_iter().zip(goals);
            alone.map(|((running, _), goal)| alone_to(engine, running, goal, chunk)).collect()
        }
    };
    let mut ran = ran.into_iter();
    let of = |share: &usize| if *share > 0 { ran.next() } else { None };
    shares.iter().map(of).map(|ran| ran.unwrap_or(Ran::Not)).collect()
}

/// One forward pass of some jobs, each with so many of its tokens.
fn forward(
    engine: &Engine,
    members: &mut [(&mut Running, &usize)],
) -> Result<Vec<Ran>, EngineError> {
    let complete: Vec<bool> = members
        .iter()
        .map(|(running, share)| running.cache.len() + **share == running.tokens.len())
        .collect();
    let wanted = if complete.contains(&true) { Logits::Last } else { Logits::None };
    let reaches: Vec<Option<Reach>> =
        members.iter().map(|(running, _)| running.chooser.reach()).collect();
    let mut inputs: Vec<Input<'_>> = members
        .iter_mut()
        .map(|(running, share)| {
            let at = running.cache.len();
            Input { tokens: &running.tokens[at..at + **share], cache: &mut running.cache }
        })
        .collect();
    let mut scores = guarded(|| {
        let logits = engine.model.forward(&mut inputs, wanted, &engine.workspace)?;
        let scores = match wanted {
            Logits::None => Vec::new(),
            _ => read(engine, &logits, &reaches)?,
        };
        Ok(scores.into_iter())
    })?;
    let ran = complete.into_iter().map(|complete| match (complete, scores.next()) {
        (true, Some(scores)) => Ran::All(scores),
        _ => Ran::Part,
    });
    Ok(ran.collect())
}

/// The scores of each row, from a GPU only of tokens that can be chosen if that is enough.
fn read(
    engine: &Engine,
    logits: &Tensor,
    reaches: &[Option<Reach>],
) -> Result<Vec<Scores>, EngineError> {
    let plain = Reach { reach: 0.0, temperature: 1.0 };
    let wanted: Vec<Reach> = reaches.iter().map(|reach| reach.unwrap_or(plain)).collect();
    let lists = match reaches.iter().any(Option::is_some) {
        true => shortlists(logits, &wanted, &engine.workspace)?,
        false => None,
    };
    let Some(lists) = lists else {
        return Ok(logits.to_vec2()?.into_iter().map(Scores::Logits).collect());
    };
    let rows = lists.into_iter().zip(reaches).enumerate();
    rows.map(|(row, (list, reach))| match (list, reach) {
        (Some(list), Some(_)) => Ok(Scores::Listed(list)),
        _ => Ok(Scores::Logits(logits.get(row)?.to_vec1()?)),
    })
    .collect()
}

/// Runs one job alone up to `goal`, after a pass has failed.
fn alone_to(engine: &Engine, running: &mut Running, goal: usize, chunk: usize) -> Ran {
    if let Err(error) = running.mend(goal) {
        return Ran::Failed(error);
    }
    loop {
        let share = (goal - running.cache.len()).min(chunk);
        match forward(engine, &mut [(&mut *running, &share)]) {
            Ok(mut ran) if running.cache.len() >= goal => return ran.pop().unwrap_or(Ran::Part),
            Ok(_) => {}
            Err(error) => return Ran::Failed(error),
        }
    }
}
