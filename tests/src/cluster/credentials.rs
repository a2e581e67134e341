//! Certificates, tokens and kubeconfigs of a control plane.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use serde_json::{Value, json};

use super::ADDRESSES;

/// A token for everything.
pub(super) const ADMIN_TOKEN: &str = "lab-admin";
/// The token of the user `system:kube-proxy`.
pub(super) const KUBE_PROXY_TOKEN: &str = "lab-kube-proxy";

/// What clients and servers of a control plane know each other by.
#[derive(Debug)]
pub(super) struct Credentials {
    /// The CA's certificate
    ca: PathBuf,
    /// The same, DER
    pub(super) ca_der: Vec<u8>,
    /// The API server's certificate
    pub(super) server_cert: PathBuf,
    /// Its key
    pub(super) server_key: PathBuf,
    /// The key that signs tokens of service accounts
    pub(super) account_key: PathBuf,
    /// Its public half, which checks them
    pub(super) account_public_key: PathBuf,
    /// Static tokens, as `--token-auth-file` reads them
    pub(super) tokens: PathBuf,
}

impl Credentials {
    /// Makes everything anew.
    pub(super) fn create(dir: &Path) -> Result<Self> {
        let write = |name: &str, text: &str| -> Result<PathBuf> {
            let path = dir.join(name);
            std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
            Ok(path)
        };
        let ca_key = KeyPair::generate()?;
        let mut ca = CertificateParams::new(vec!["lab-ca".to_owned()])?;
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = ca.self_signed(&ca_key)?;
        let issuer = Issuer::new(ca, ca_key);
        let server_key = KeyPair::generate()?;
        let names = ["127.0.0.1", "::1", "localhost"].map(str::to_owned).into_iter();
        let server = CertificateParams::new(
            names.chain(ADDRESSES.map(|address| address.to_string())).collect::<Vec<_>>(),
        )?
        .signed_by(&server_key, &issuer)?;
        let account_key = KeyPair::generate()?;
        let tokens =
            format!("{ADMIN_TOKEN},lab-admin,1,\"system:masters\"\n{KUBE_PROXY_TOKEN},system:kube-proxy,2\n");
        Ok(Self {
            ca: write("ca.crt", &certificate.pem())?,
            ca_der: certificate.der().to_vec(),
            server_cert: write("server.crt", &server.pem())?,
            server_key: write("server.key", &server_key.serialize_pem())?,
            account_key: write("account.key", &account_key.serialize_pem())?,
            account_public_key: write("account.pub", &account_key.public_key_pem())?,
            tokens: write("tokens.csv", &tokens)?,
        })
    }

    /// A kubeconfig (JSON is YAML).
    pub(super) fn kubeconfig(&self, server: &str, user: &Value) -> String {
        kubeconfig(&json!({"server": server, "certificate-authority": self.ca}), user)
    }
}

/// A kubeconfig of one cluster and one user.
pub(super) fn kubeconfig(cluster: &Value, user: &Value) -> String {
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "lab", "cluster": cluster}],
        "users": [{"name": "lab", "user": user}],
        "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "lab"}}],
        "current-context": "lab",
    })
    .to_string()
}
