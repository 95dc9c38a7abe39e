//! Addresses of nodes: as users write them, in lists, and as nodes give them.

use std::{fmt, sync::Arc};

use tonic::transport::Uri;

use crate::error::ClientError;

/// Most addresses of one client.
const MAX_ADDRESSES: usize = 256;
/// Longest address, bytes: a DNS name has at most 253.
const MAX_LENGTH: usize = 512;

/// The address of a node, such as `http://10.0.0.1:50051`. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct Address(Arc<str>);

impl Address {
    /// Parses an address with its scheme.
    pub(crate) fn new(text: &str) -> Result<Self, ClientError> {
        let text = text.trim().trim_end_matches('/');
        let invalid =
            |reason: &str| ClientError::Endpoint { endpoint: text.to_owned(), reason: reason.to_owned() };
        if text.len() > MAX_LENGTH {
            return Err(ClientError::Endpoint {
                endpoint: text.chars().take(64).collect(),
                reason: format!("it has {} bytes, at most {MAX_LENGTH} are allowed", text.len()),
            });
        }
        if !text.contains("://") && !text.is_empty() {
            return Err(invalid(&format!("it must begin with http:// or https://: write http://{text}")));
        }
        let uri: Uri = text.parse().map_err(|error| invalid(&format!("{error}")))?;
        if !matches!(uri.scheme_str(), Some("http" | "https")) {
            return Err(invalid("it must begin with http:// or https://"));
        }
        if uri.host().is_none_or(str::is_empty) {
            return Err(invalid("it names no host"));
        }
        Ok(Self(text.into()))
    }

    /// Parses a list: any number of texts, each with any number of addresses between commas. Repeated addresses count once.
    pub(crate) fn list<T: AsRef<str>>(texts: impl IntoIterator<Item = T>) -> Result<Vec<Self>, ClientError> {
        let mut list = Vec::new();
        for text in texts {
            for address in text.as_ref().split(',').filter(|address| !address.trim().is_empty()) {
                let address = Self::new(address)?;
                if !list.contains(&address) {
                    list.push(address);
                }
                if list.len() > MAX_ADDRESSES {
                    return Err(ClientError::Invalid(format!(
                        "more than {MAX_ADDRESSES} addresses are given"
                    )));
                }
            }
        }
        if list.is_empty() {
            let reason = "no address is given: give at least one, such as http://127.0.0.1:50051".to_owned();
            return Err(ClientError::Endpoint { endpoint: String::new(), reason });
        }
        Ok(list)
    }

    /// The address of another node, as this one gives it: host:port, with the scheme of this one. `None` if it is malformed.
    pub(crate) fn resolve(&self, text: &str) -> Option<Self> {
        if text.is_empty() {
            return None;
        }
        if text.contains("://") {
            return Self::new(text).ok();
        }
        let (scheme, _) = self.0.split_once("://")?;
        Self::new(&format!("{scheme}://{text}")).ok()
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Address({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_written_with_commas_or_given_as_a_list_and_names_each_address_once() {
        let texts = ["http://a:1, http://b:2/,", "http://a:1", "https://[::1]:3"];
        let list = Address::list(texts).unwrap();
        let list: Vec<_> = list.iter().map(Address::as_str).collect();
        assert_eq!(list, ["http://a:1", "http://b:2", "https://[::1]:3"]);
    }

    #[test]
    fn what_is_not_an_address_is_refused_with_its_text() {
        for text in ["a:1", "ftp://a", "http://", "http://a b", "http://a:1,nonsense", "", " , "] {
            let error = Address::list([text]).unwrap_err();
            assert!(matches!(error, ClientError::Endpoint { .. }), "{text}: {error}");
        }
        assert!(Address::new(&format!("http://{}", "x".repeat(600))).is_err());
        let many = (0..300).map(|n| format!("http://a:{n}"));
        assert!(Address::list(many).is_err());
    }

    #[test]
    fn an_address_that_a_node_gives_has_the_scheme_of_that_node() {
        let node = Address::new("https://ledger-0:50051").unwrap();
        assert_eq!(node.resolve("10.0.0.2:50051").unwrap().as_str(), "https://10.0.0.2:50051");
        assert_eq!(node.resolve("http://b:1").unwrap().as_str(), "http://b:1");
        assert_eq!(node.resolve(""), None);
        assert_eq!(node.resolve("a b"), None);
    }
}
