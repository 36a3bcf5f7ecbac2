//! Fetch a file from the hub into the shared cache, and say where it is.
//!
//! ```text
//! cargo run --release --example fetch -- ORG/REPO:FILE
//! ```
//!
//! Interrupt it, start it again: it goes on where it was.

use candle_ds4::hub::{Cancel, Event, Hub, Settings};
use candle_ds4::size::Size;

fn main() -> anyhow::Result<()> {
    let name = std::env::args().nth(1).unwrap_or_else(|| "q2-imatrix".to_string());

    // Endpoint, token, cache folder: Hugging Face's own environment variables.
    let hub = Hub::new(Settings::from_env()?)?;
    let cancel = Cancel::default();
    hub.cancel_on_interrupt(&cancel);

    // The repository's own listing says which file a name means.
    let selection = hub.select(&name.parse()?, &cancel, &mut |_| {})?;
    println!("{} of {} at {}", selection.file.path, selection.repo, selection.commit);

    let mut percent = 0;
    let fetched = hub.fetch(&selection, &cancel, &mut |event| match event {
        Event::Progress { done, total, .. } if done * 100 / total.max(&1) > percent => {
            percent = done * 100 / total.max(&1);
            println!("{percent} % of {}", Size(*total));
        }
        Event::Progress { .. } => {}
        other => println!("{other:?}"),
    })?;

    // Whole, checked and on disk: nothing less gets this name.
    println!("{}", fetched.path.display());
    Ok(())
}
