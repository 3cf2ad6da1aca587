//! Countries: who is let in by what a database says about an address. The database is the user's, in MaxMind's format.

use std::net::IpAddr;

use maxminddb::{PathElement, Reader};

use crate::config::model::{Countries, Country, Mode};

/// A database of countries.
pub struct Database(Reader<Vec<u8>>);

impl Database {
    /// Opens a database and looks through the whole of it once, so that no lookup meets what cannot be read.
    ///
    /// # Errors
    /// A sentence.
    pub fn open(bytes: Vec<u8>) -> Result<Database, String> {
        let reader =
            Reader::from_source(bytes).map_err(|error| format!("it is no MaxMind database: {error}"))?;
        reader.verify().map_err(|error| format!("the database is damaged: {error}"))?;
        Ok(Database(reader))
    }

    /// The country of an address; `None` where the database has none. Allocates nothing.
    pub fn country(&self, address: IpAddr) -> Option<Country> {
        let found = self.0.lookup(address.to_canonical()).ok()?;
        let of = |what: &'static str| {
            let path = [PathElement::Key(what), PathElement::Key("iso_code")];
            found.decode_path::<&str>(&path).ok().flatten().and_then(Country::parse)
        };
        // Where somebody is, rather than where their network is registered; the latter is all that is known of some.
        of("country").or_else(|| of("registered_country"))
    }
}

impl std::fmt::Debug for Database {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0.metadata().database_type)
    }
}

/// One `countries`, compiled.
#[derive(Debug, Clone)]
pub struct CountryList {
    allow: Option<Box<[Country]>>,
    deny: Box<[Country]>,
    unknown: bool,
    /// Whether it refuses.
    pub mode: Mode,
}

impl CountryList {
    /// Compiles.
    pub fn compile(said: &Countries) -> CountryList {
        let sorted = |countries: &[Country]| {
            let mut countries = countries.to_vec();
            countries.sort_unstable();
            countries.into_boxed_slice()
        };
        CountryList {
            allow: said.allow.as_deref().map(sorted),
            deny: sorted(&said.deny),
            unknown: said.unknown,
            mode: said.mode,
        }
    }

    /// Whether clients from there are let in; `None`: nobody knows where from.
    pub fn admits(&self, country: Option<Country>) -> bool {
        let Some(country) = country else { return self.unknown };
        let among = |countries: &[Country]| countries.binary_search(&country).is_ok();
        !among(&self.deny) && self.allow.as_deref().is_none_or(among)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::model::Origin;

    fn list(allow: Option<&[&str]>, deny: &[&str], unknown: bool) -> CountryList {
        let countries = |all: &[&str]| all.iter().map(|text| Country::parse(text).unwrap()).collect();
        CountryList::compile(&Countries {
            allow: allow.map(countries),
            deny: countries(deny),
            unknown,
            mode: Mode::Enforce,
            origin: Origin::Default,
        })
    }

    #[test]
    fn allow_deny_and_the_unknown() {
        let admits = |list: &CountryList, text: &str| list.admits(Country::parse(text));
        let some = list(Some(&["DE", "at"]), &[], false);
        assert!(admits(&some, "DE") && admits(&some, "AT") && !admits(&some, "FR") && !some.admits(None));
        let not = list(None, &["kp"], true);
        assert!(!admits(&not, "KP") && admits(&not, "DE") && not.admits(None));
    }

    #[test]
    fn what_is_no_database_is_refused() {
        assert!(Database::open(Vec::new()).unwrap_err().contains("no MaxMind database"));
        assert!(Database::open(vec![7; 4096]).is_err());
    }
}
