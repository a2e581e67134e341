//! Access to the API: the address and the credentials, which may change on disk.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use tracing::{info, warn};

use super::KubernetesError;

/// Where the API server and the credentials are written down.
#[derive(Clone, Debug, Default)]
pub struct Origin {
    /// A kubeconfig; the pod's service account without one.
    pub kubeconfig: Option<PathBuf>,
    /// The server's URL, over that of the kubeconfig.
    pub master: Option<String>,
}

/// A client that can be made anew from its files. Clones share it.
#[derive(Clone)]
pub struct Access {
    origin: Arc<Origin>,
    current: Arc<Mutex<Current>>,
}

#[derive(Clone)]
pub(super) struct Current {
    pub(super) client: Client,
    /// The server, as metrics name it.
    pub(super) host: Arc<str>,
    /// How often the client has been made anew.
    pub(super) generation: u64,
}

impl Access {
    /// Reads the files.
    pub async fn new(origin: Origin) -> Result<Access, KubernetesError> {
        let current = connect(&origin).await?;
        Ok(Access { origin: Arc::new(origin), current: Arc::new(Mutex::new(current)) })
    }

    pub(super) fn current(&self) -> Current {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads the files again, because the server refused what they said. Whoever comes second with the same
    /// client finds it done.
    pub(super) async fn renew(&self, refused: u64) {
        if self.current().generation != refused {
            return;
        }
        match connect(&self.origin).await {
            Ok(renewed) => {
                let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
                if current.generation == refused {
                    *current = Current { generation: refused + 1, ..renewed };
                    info!("credentials read again");
                }
            }
            Err(error) => warn!(%error, "cannot read the credentials again; keeping the old ones"),
        }
    }
}

async fn connect(origin: &Origin) -> Result<Current, KubernetesError> {
    let wrong = |url: &str, reason| KubernetesError::Master { url: url.to_owned(), reason };
    let master = origin
        .master
        .as_deref()
        .map(|url| url.parse::<axum::http::Uri>().map_err(|error| wrong(url, error.to_string())));
    let master = master.transpose()?;
    let mut config = match &origin.kubeconfig {
        Some(path) => {
            let fail = |source| KubernetesError::Kubeconfig { path: path.clone(), source: Box::new(source) };
            let file = Kubeconfig::read_from(path).map_err(fail)?;
            Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.map_err(fail)?
        }
        None => match (Config::incluster(), &master) {
            (Ok(config), _) => config,
            // --master alone is enough where the API server asks for no credentials.
            (Err(_), Some(url)) => Config::new(url.clone()),
            (Err(error), None) => return Err(KubernetesError::InCluster(Box::new(error))),
        },
    };
    if let Some(url) = master {
        config.cluster_url = url;
    }
    // A watch is a long silence: requests have their own limits.
    config.read_timeout = None;
    // Nor must anything be tried again behind our back, uncounted.
    config.default_retry = false;
    let host = config.cluster_url.authority().map_or_else(String::new, ToString::to_string).into();
    let client = Client::try_from(config).map_err(|error| KubernetesError::Client(Box::new(error)))?;
    Ok(Current { client, host, generation: 0 })
}
