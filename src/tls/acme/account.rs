//! Accounts at CAs, one for each directory, shared by both engines.
//!
//! An account's key is stored before the CA hears of it, and registering the same key again yields the same account
//! (RFC 8555 section 7.3.1): no crash can lose it, and a change of engine keeps it. A store that cannot be read never
//! leads to a new one.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::{BASE64_STANDARD_NO_PAD, BASE64_URL_SAFE_NO_PAD};
use instant_acme::{Account, AccountCredentials, Error, ExternalAccountKey, Key as AccountKey, NewAccount};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use zeroize::Zeroizing;

use super::http::{Client, Notes};
use super::issuer::{IssueError, Reason};
use super::managed::explain;
use super::nonce::persist;
use super::store::{Expect, Key, Kind, Lock, Store, StoreError};
use crate::base::clock::{self, Millis};
use crate::config::model::Directory;

/// How long a loaded account, and with it the CA's directory, is used without asking again.
const ACCOUNT_FRESH: Duration = Duration::from_secs(600);
/// How long an account's lock outlives us.
const LEASE: Duration = Duration::from_secs(60);

/// The accounts.
pub struct Accounts {
    client: Client,
    store: Arc<dyn Store>,
    email: Option<String>,
    open: Mutex<HashMap<Directory, (Millis, Account)>>,
}

/// An account as stored: the key first, the CA's answer as soon as it came.
#[derive(Serialize, Deserialize)]
struct StoredAccount {
    directory: String,
    /// PKCS #8, base64url.
    key: String,
    credentials: Option<AccountCredentials>,
    created: u64,
}

impl StoredAccount {
    fn der(&self) -> Result<Zeroizing<Vec<u8>>, IssueError> {
        let der = BASE64_URL_SAFE_NO_PAD.decode(&self.key).map(Zeroizing::new);
        der.map_err(|_| {
            IssueError::new(Reason::Store, format!("The stored key for {} is no key.", self.directory))
        })
    }
}

impl Accounts {
    /// Does nothing yet.
    pub fn new(client: Client, store: Arc<dyn Store>, email: Option<String>) -> Accounts {
        Accounts { client, store, email, open: Mutex::new(HashMap::new()) }
    }

    /// Where the CA may write to.
    pub fn contact(&self) -> Option<String> {
        self.email.as_ref().map(|email| format!("mailto:{email}"))
    }

    /// The calls that accounts are made with.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The key of the account at a CA, PKCS #8.
    pub async fn key(&self, directory: &Directory) -> Result<Zeroizing<Vec<u8>>, IssueError> {
        // One at a time has the store's lock.
        let _one = self.open.lock().await;
        let (_, found) = self.stored(directory).await?;
        let none = || IssueError::new(Reason::Store, format!("There is no account for {}.", directory.url));
        found.ok_or_else(none)?.der()
    }

    /// The account at a CA, with the CA's directory; made when the store certainly has none.
    pub async fn account(&self, directory: &Directory) -> Result<Account, IssueError> {
        // Held over the whole: two orders at once must not make two accounts.
        let mut accounts = self.open.lock().await;
        if let Some((until, account)) = accounts.get(directory)
            && clock::now() < *until
        {
            return Ok(account.clone());
        }
        let account = self.open_account(directory, false).await?;
        accounts.insert(directory.clone(), (clock::now().after(ACCOUNT_FRESH), account.clone()));
        Ok(account)
    }

    /// The same for a CA that forgot it: its key is registered again.
    pub async fn register_again(&self, directory: &Directory) -> Result<Account, IssueError> {
        let mut accounts = self.open.lock().await;
        let account = self.open_account(directory, true).await?;
        accounts.insert(directory.clone(), (clock::now().after(ACCOUNT_FRESH), account.clone()));
        Ok(account)
    }

    /// Loads the account, or makes one when the store certainly has none.
    async fn open_account(&self, directory: &Directory, again: bool) -> Result<Account, IssueError> {
        let (lock, found) = self.stored(directory).await?;
        let mut stored = match found {
            Some(found) => found,
            None => new_key(directory)?,
        };
        let said = |error: Error| explain(&error, &Notes::default());
        let builder = Account::builder_with_http(Box::new(self.client.clone()));
        if let Some(credentials) = stored.credentials.take().filter(|_| !again) {
            return builder.from_credentials(credentials).await.map_err(said);
        }
        let (account, credentials) = match &directory.eab {
            None => {
                self.save(directory, &stored, &lock).await?;
                self.register(directory, &stored).await?
            }
            Some(eab) => {
                let decoded = BASE64_URL_SAFE_NO_PAD
                    .decode(eab.hmac.trim_end_matches('='))
                    .or_else(|_| BASE64_STANDARD_NO_PAD.decode(eab.hmac.trim_end_matches('=')));
                let mac = decoded
                    .map_err(|_| IssueError::new(Reason::Account, "The MAC key of `eab` is not base64."))?;
                let contact = self.contact();
                let contact: Vec<&str> = contact.iter().map(String::as_str).collect();
                let new = NewAccount {
                    contact: &contact,
                    terms_of_service_agreed: true,
                    only_return_existing: false,
                };
                persist!(async {
                    // A refused nonce made no account, so a fresh key is as good.
                    let builder = Account::builder_with_http(Box::new(self.client.clone()));
                    let eab = ExternalAccountKey::new(eab.id.clone(), &mac);
                    builder.create(&new, directory.url.to_string(), Some(&eab)).await
                })
                .map_err(said)?
            }
        };
        stored.key = BASE64_URL_SAFE_NO_PAD.encode(credentials.private_key().secret_pkcs8_der());
        stored.credentials = Some(credentials);
        self.save(directory, &stored, &lock).await?;
        Ok(account)
    }

    async fn register(
        &self,
        directory: &Directory,
        stored: &StoredAccount,
    ) -> Result<(Account, AccountCredentials), IssueError> {
        let der = stored.der()?;
        let said = |error: Error| explain(&error, &Notes::default());
        let made = persist!(async {
            let pkcs8 = PrivatePkcs8KeyDer::from(der.to_vec());
            let key = AccountKey::from_pkcs8_der(pkcs8.clone_key())?;
            let builder = Account::builder_with_http(Box::new(self.client.clone()));
            builder.create_from_key((key, PrivateKeyDer::Pkcs8(pkcs8)), directory.url.to_string()).await
        });
        let (account, credentials) = made.map_err(said)?;
        if let Some(contact) = self.contact() {
            // Without a contact the account works as well; many CAs ignore it.
            if let Err(error) = persist!(account.update_contacts(&[&contact])) {
                tracing::warn!(ca = %directory.name, "the CA did not take the email address: {error}");
            }
        }
        Ok((account, credentials))
    }

    /// What is stored, and the lock under which it may be changed.
    async fn stored(
        &self,
        directory: &Directory,
    ) -> Result<(Arc<dyn Lock>, Option<StoredAccount>), IssueError> {
        let (store, key) = (Arc::clone(&self.store), Key::new(Kind::Account, &directory.url));
        let lock_name = directory.url.to_string();
        let (lock, found) = off(move || {
            let lock = store.lock(&lock_name, LEASE)?;
            Ok((lock, store.load(&key)?))
        })
        .await?;
        let lock = lock.ok_or_else(|| {
            IssueError::new(Reason::Store, "Another process is using the account at this CA just now.")
        })?;
        let found = found.map(|found| serde_json::from_slice::<StoredAccount>(&found.bytes)).transpose();
        let found = found.map_err(|e| {
            let message = format!("The stored account for {} cannot be read: {e}.", directory.url);
            IssueError::new(Reason::Store, message)
        })?;
        Ok((Arc::from(lock), found))
    }

    async fn save(
        &self,
        directory: &Directory,
        stored: &StoredAccount,
        lock: &Arc<dyn Lock>,
    ) -> Result<(), IssueError> {
        let bytes = serde_json::to_vec(stored).map(Zeroizing::new);
        let bytes = bytes.map_err(|e| IssueError::new(Reason::Store, e.to_string()))?;
        let (store, lock) = (Arc::clone(&self.store), Arc::clone(lock));
        let place = Key::new(Kind::Account, &directory.url);
        off(move || store.save(&place, &bytes, &Expect::Any, Some(lock.as_ref()))).await?;
        Ok(())
    }
}

fn new_key(directory: &Directory) -> Result<StoredAccount, IssueError> {
    let (_, der) = AccountKey::generate_pkcs8()
        .map_err(|e| IssueError::new(Reason::Other, format!("An account key could not be made: {e}.")))?;
    Ok(StoredAccount {
        directory: directory.url.to_string(),
        key: BASE64_URL_SAFE_NO_PAD.encode(der.secret_pkcs8_der()),
        credentials: None,
        created: clock::wall().as_secs(),
    })
}

/// Runs a blocking call of the store beside the runtime.
pub(super) async fn off<T: Send + 'static>(
    call: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, IssueError> {
    match tokio::task::spawn_blocking(call).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(IssueError::new(Reason::Store, error.to_string())),
        Err(error) => Err(IssueError::new(Reason::Store, format!("The store call did not end: {error}."))),
    }
}
