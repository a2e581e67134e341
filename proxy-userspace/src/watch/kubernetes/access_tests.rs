use super::*;

fn empty_directory(test: &str) -> PathBuf {
    let directory = std::env::temp_dir().join(format!("sluice-account-{test}-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    directory
}

#[test]
fn a_pods_token_is_not_sent_to_the_server_that_master_names() {
    let account = empty_directory("master");
    let signed = rcgen::generate_simple_self_signed(["kubernetes".to_owned()]).unwrap();
    std::fs::write(account.join("token"), "t\n").unwrap();
    std::fs::write(account.join("ca.crt"), signed.cert.pem()).unwrap();
    let in_a_pod = |name: &str| match name {
        "KUBERNETES_SERVICE_HOST" => Some("10.96.0.1".to_owned()),
        "KUBERNETES_SERVICE_PORT" => Some("443".to_owned()),
        _ => None,
    };
    let with = |master: Option<&str>| {
        let origin = Origin { kubeconfig: None, master: master.map(str::to_owned) };
        choose(&origin, &account, in_a_pod).unwrap()
    };
    for (master, server) in [
        ("http://10.0.0.1:8080", "http://10.0.0.1:8080"),
        ("10.0.0.1:8080", "http://10.0.0.1:8080"),
        ("https://10.0.0.1:6443", "https://10.0.0.1:6443"),
    ] {
        let chosen = with(Some(master));
        assert_eq!(chosen.server, server);
        assert!(!chosen.authorization.is_some(), "{master}: the token goes to it");
        assert!(chosen.roots.is_none(), "{master}: it is checked by the cluster's authority");
    }
    assert!(with(None).authorization.is_some());
    std::fs::remove_dir_all(account).unwrap();
}

#[test]
fn a_service_account_gives_address_authority_and_token() {
    let directory = empty_directory("pod");
    let signed = rcgen::generate_simple_self_signed(["kubernetes".to_owned()]).unwrap();
    std::fs::write(directory.join("token"), "t\n").unwrap();
    let environment = |host: &'static str| {
        move |name: &str| match name {
            "KUBERNETES_SERVICE_HOST" => Some(host.to_owned()),
            "KUBERNETES_SERVICE_PORT" => Some("443".to_owned()),
            _ => None,
        }
    };
    let reason = in_cluster(&directory, environment("10.96.0.1")).err().unwrap();
    assert!(reason.contains("ca.crt"), "{reason}");
    std::fs::write(directory.join("ca.crt"), signed.cert.pem()).unwrap();
    let chosen = in_cluster(&directory, environment("fd00::1")).unwrap();
    assert_eq!(chosen.server, "https://[fd00::1]:443");
    assert_eq!(chosen.authorization.header().unwrap().unwrap(), "Bearer t");
    assert!(in_cluster(&directory, |_| None).err().unwrap().contains("KUBERNETES_SERVICE_HOST"));
    std::fs::remove_dir_all(directory).unwrap();
}

#[test]
fn the_servers_url_is_shown_without_credentials() {
    for (url, expected) in [
        ("https://u:secret@10.0.0.1:6443", "https://10.0.0.1:6443"),
        ("https://api.example/k8s/", "https://api.example/k8s"),
        ("http://[fd00::1]:80", "http://[fd00::1]:80"),
    ] {
        assert_eq!(told(&url.parse().unwrap()), expected);
    }
}
