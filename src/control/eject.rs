//! Once a second: which endpoint fails more, or is slower, than the rules of its service allow, and whether a service is
//! to panic. Failures in a row are counted where they happen; what needs a window of time is compared here, so that no
//! request pays for it and all workers go by one verdict. What is compared how stands in [`Windows`].

use std::sync::Arc;
use std::time::Duration;

use crate::base::{clock, gentle};
use crate::control::Control;
use crate::upstream::health::window::Windows;

/// Time between two looks.
const LOOK: Duration = Duration::from_secs(1);

/// Looks for ever.
pub async fn run(control: Arc<Control>) {
    let mut windows = Windows::default();
    loop {
        tokio::time::sleep(LOOK).await;
        let residents = control.residents.clone();
        let look = move || {
            windows.look(&residents.endpoints.groups(), clock::now());
            windows
        };
        // There may be ten thousand services: not on the thread that answers the admin socket, nor in one go.
        windows = tokio::task::spawn_blocking(|| gentle::work(look)).await.unwrap_or_default();
    }
}
