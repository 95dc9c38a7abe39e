//! TLS of the gRPC listener: the node's certificate, and whose certificates it asks clients for.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        RootCertStore, ServerConfig,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
        server::WebPkiClientVerifier,
    },
};

use crate::settings::config::Config;

/// What the protocol is called in the handshake (RFC 7301): gRPC is HTTP/2 and nothing else.
const HTTP2: &[u8] = b"h2";

/// A TLS file cannot be read or used.
#[derive(Debug, thiserror::Error)]
#[error("cannot use the TLS file {} ({key}): {reason}", path.display())]
pub struct TlsError {
    /// The setting.
    pub key: &'static str,
    /// The file.
    pub path: PathBuf,
    /// Why.
    pub reason: String,
}

/// What accepts TLS connections; `None` if the node serves in plain. Reads files: blocks, shortly.
///
/// # Errors
/// [`TlsError`] names the setting, the file, and what is wrong with it.
pub fn acceptor(config: &Config) -> Result<Option<TlsAcceptor>, TlsError> {
    let (Some(cert), Some(key)) = (&config.tls_cert, &config.tls_key) else { return Ok(None) };
    let chain = certificates("tls_cert", cert)?;
    let private_key = PrivateKeyDer::from_pem_slice(&read("tls_key", key)?)
        .map_err(|error| wrong("tls_key", key, format!("no private key in PEM: {error}")))?;
    let provider = Arc::new(ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| wrong("tls_cert", cert, error.to_string()))?;
    let builder = match &config.tls_client_ca {
        None => builder.with_no_client_auth(),
        Some(ca) => {
            let refused = |error: &dyn std::fmt::Display| wrong("tls_client_ca", ca, error.to_string());
            let mut roots = RootCertStore::empty();
            for certificate in certificates("tls_client_ca", ca)? {
                roots.add(certificate).map_err(|error| refused(&error))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            builder.with_client_cert_verifier(verifier.build().map_err(|error| refused(&error))?)
        }
    };
    let mut tls = builder
        .with_single_cert(chain, private_key)
        .map_err(|error| wrong("tls_key", key, format!("it does not fit the certificate: {error}")))?;
    tls.alpn_protocols = vec![HTTP2.to_vec()];
    Ok(Some(TlsAcceptor::from(Arc::new(tls))))
}

fn certificates(key: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found = CertificateDer::pem_slice_iter(&read(key, path)?)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| wrong(key, path, format!("no certificates in PEM: {error}")))?;
    if found.is_empty() {
        return Err(wrong(key, path, "it has no certificate in PEM".to_owned()));
    }
    Ok(found)
}

fn read(key: &'static str, path: &Path) -> Result<Vec<u8>, TlsError> {
    fs::read(path).map_err(|error: io::Error| wrong(key, path, error.to_string()))
}

fn wrong(key: &'static str, path: &Path, reason: String) -> TlsError {
    TlsError { key, path: path.to_owned(), reason }
}
