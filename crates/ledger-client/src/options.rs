//! How to connect.

use std::time::Duration;

use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};

use crate::ClientError;

/// How to connect and how long to wait. The defaults notice a dead node within seconds.
#[derive(Debug, Clone)]
pub struct Options {
    /// How long connecting may take.
    pub connect_timeout: Duration,
    /// How long a call with one answer may take, all its tries together, and how long a stream may be without
    /// a node that serves it.
    pub timeout: Duration,
    /// How often a silent connection is probed with an HTTP/2 ping.
    pub keep_alive: Duration,
    /// How long the answer to a probe may take before the connection is given up.
    pub keep_alive_timeout: Duration,
    /// Tries of a call in all, the first included; 1: none is repeated; 0: as many as the time allows, with
    /// pauses that grow to half a second, which outlasts the loss of an owner.
    pub tries: u32,
    /// TLS, for endpoints that begin with `https://`.
    pub tls: Tls,
    /// Largest message taken, bytes.
    pub max_message: usize,
}

/// Certificates, PEM.
#[derive(Debug, Clone, Default)]
pub struct Tls {
    /// Authorities to trust instead of the system's.
    pub ca: Option<Vec<u8>>,
    /// This client's certificate and its key.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
    /// The name expected in the server's certificate, if it is not the endpoint's host.
    pub domain: Option<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(3),
            timeout: Duration::from_secs(30),
            keep_alive: Duration::from_secs(1),
            keep_alive_timeout: Duration::from_secs(2),
            tries: 0,
            tls: Tls::default(),
            max_message: 512 << 20,
        }
    }
}

/// An HTTP/2 window, bytes: what may be under way unread.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;

impl Options {
    pub(crate) fn endpoint(&self, uri: &str) -> Result<Endpoint, ClientError> {
        let invalid = |reason: String| ClientError::Endpoint { endpoint: uri.to_owned(), reason };
        let endpoint = Endpoint::from_shared(uri.to_owned())
            .map_err(|error| invalid(error.to_string()))?
            .connect_timeout(self.connect_timeout)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(self.keep_alive)
            .keep_alive_timeout(self.keep_alive_timeout)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW);
        match endpoint.uri().scheme_str() {
            Some("http") => Ok(endpoint),
            Some("https") => {
                endpoint.tls_config(self.tls.config()).map_err(|error| invalid(error.to_string()))
            }
            _ => Err(invalid("it must begin with http:// or https://".to_owned())),
        }
    }
}

impl Tls {
    fn config(&self) -> ClientTlsConfig {
        let mut config = ClientTlsConfig::new();
        config = match &self.ca {
            Some(ca) => config.ca_certificate(Certificate::from_pem(ca)),
            None => config.with_native_roots(),
        };
        if let Some((certificate, key)) = &self.identity {
            config = config.identity(Identity::from_pem(certificate, key));
        }
        if let Some(domain) = &self.domain {
            config = config.domain_name(domain);
        }
        config
    }
}
