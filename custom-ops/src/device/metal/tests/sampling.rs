//! What is read back of a row of scores.

use candle_core::{Device, Result, Tensor};
use rand::Rng;

use super::{floats, places, rng};
use crate::{likeliest, shortlists, Reach, Workspace};

#[test]
fn the_likeliest_token_ties_and_odd_scores() -> Result<()> {
    let mut rng = rng();
    let ws = Workspace::new(&Device::Cpu);
    for count in [1, 31, 1024, 5003] {
        let scores = floats((5, count), 1.0, &mut rng).to_vec2::<f32>()?;
        let mut scores = scores;
        // The best of the second row is there twice, everything is the same in the third, and the
        // last two have something odd that is not the best.
        let (first, again) = (rng.random_range(0..count), rng.random_range(0..count));
        (scores[1][first], scores[1][again]) = (2.0, 2.0);
        scores[2].fill(-7.0);
        scores[3][rng.random_range(0..count)] = f32::NAN;
        scores[4][rng.random_range(0..count)] = f32::NEG_INFINITY;
        let skips = [None, Some(first as u32), Some(0), Some(count as u32 + 3)];
        let scores = Tensor::new(scores, &Device::Cpu)?;
        for skip in skips {
            let want = likeliest(&scores, skip, &ws)?;
            assert_eq!(want[3..], [None, None]);
            for place in places() {
                let scores = place.tensor(&scores);
                let got = place.run(|ws| likeliest(&scores, skip, ws));
                assert_eq!(got, want, "{count} scores without {skip:?}, {place}");
            }
        }
    }
    Ok(())
}

#[test]
fn shortlists_have_all_within_reach_and_their_share() -> Result<()> {
    let mut rng = rng();
    for count in [1, 40, 3001] {
        let mut scores = floats((4, count), 9.0, &mut rng).to_vec2::<f32>()?;
        scores[2].fill(1.0);
        scores[3][rng.random_range(0..count)] = f32::INFINITY;
        let wanted: Vec<Reach> = (0..4)
            .map(|_| Reach {
                reach: rng.random_range(0.0..1.0),
                temperature: rng.random_range(0.3..2.0),
            })
            .collect();
        let tensor = Tensor::new(scores.clone(), &Device::Cpu)?;
        for place in places() {
            let tensor = place.tensor(&tensor);
            let lists = place.run(|ws| shortlists(&tensor, &wanted, ws));
            let Some(lists) = lists else { panic!("{place}: scores are on a GPU") };
            for (row, (list, scores)) in lists.iter().zip(&scores).enumerate() {
                let case = format!("row {row} of {count}, {place}");
                let best = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let near = |&id: &usize| scores[id] >= best - wanted[row].reach;
                let ids: Vec<usize> = (0..count).filter(near).collect();
                match list {
                    None => assert!(ids.len() > 254, "{case}: {} would fit", ids.len()),
                    Some(list) if row == 3 => assert!(list.ids.is_empty(), "{case}"),
                    Some(list) => {
                        assert!(list.ids.iter().map(|&id| id as usize).eq(ids), "{case}");
                        let of = |&id: &u32| scores[id as usize];
                        assert!(list.ids.iter().map(of).eq(list.scores.iter().copied()), "{case}");
                        let weight =
                            |score: f32| f64::from((score - best) / wanted[row].temperature).exp();
                        let all: f64 = scores.iter().copied().map(weight).sum();
                        let here: f64 = list.scores.iter().copied().map(weight).sum();
                        let off = (f64::from(list.share) - here / all).abs();
                        assert!(off < 1e-5, "{case}: a share of {} is {off} off", list.share);
                    }
                }
            }
        }
    }
    Ok(())
}
