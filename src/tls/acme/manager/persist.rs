//! Writing into the store: never on the runtime's thread, and with patience for what cannot be had again.

use std::sync::Arc;
use std::time::Duration;

use zeroize::Zeroizing;

use super::Manager;
use crate::tls::acme::account::off;
use crate::tls::acme::issuer::{IssueError, Reason};
use crate::tls::acme::store::{Expect, Key, Lock, StoreError, Version};

/// How often, and how long apart, a certificate is tried to be stored: twenty minutes. An order is lost after that, and
/// none follows before the store has room again.
const TRIES: u32 = 240;
const PAUSE: Duration = Duration::from_secs(5);

/// How soon a store that could not be written is tried again.
const ROOM_AGAIN: Duration = Duration::from_secs(15);

impl Manager {
    /// Whether a certificate could be stored: a store that cannot be written would lose what is ordered. Nobody is
    /// asked for anything until it can.
    pub(super) async fn room(&self) -> Result<(), IssueError> {
        let store = Arc::clone(&self.store);
        let ready = off(move || store.ready()).await;
        ready.map_err(|error| IssueError { retry_after: Some(ROOM_AGAIN), ..error })
    }

    /// Writes a record.
    pub(super) async fn write(
        &self,
        place: Key,
        bytes: Zeroizing<Vec<u8>>,
        expect: Expect,
        lock: Option<Arc<dyn Lock>>,
    ) -> Result<Version, IssueError> {
        let store = Arc::clone(&self.store);
        off(move || store.save(&place, &bytes, &expect, lock.as_deref())).await
    }

    /// Writes a certificate that was just issued: the disk may be full only for a while, and a second order would cost
    /// a second piece of the CA's limits.
    pub(super) async fn write_patiently(
        &self,
        site: &str,
        place: Key,
        bytes: Zeroizing<Vec<u8>>,
        expect: Expect,
        lock: Arc<dyn Lock>,
    ) -> Result<Version, IssueError> {
        let bytes = Arc::new(bytes);
        let mut round = 1;
        loop {
            let (store, place, expect) = (Arc::clone(&self.store), place.clone(), expect.clone());
            let (bytes, lock) = (Arc::clone(&bytes), Arc::clone(&lock));
            let tried = off(move || match store.save(&place, &bytes, &expect, Some(lock.as_ref())) {
                Err(StoreError::Io { path, doing, error }) => {
                    Ok(Err(StoreError::Io { path, doing, error }.to_string()))
                }
                other => other.map(Ok),
            });
            match tried.await? {
                Ok(version) => return Ok(version),
                Err(why) if round >= TRIES => return Err(IssueError::new(Reason::Store, why)),
                Err(why) => {
                    if round == 1 {
                        tracing::error!(
                            site,
                            "the new certificate cannot be stored, and is kept in memory: {why}"
                        );
                    }
                    round += 1;
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }
}
