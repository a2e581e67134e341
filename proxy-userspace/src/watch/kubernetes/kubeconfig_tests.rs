use super::*;

/// A directory with a CA, a client certificate with its key, and a token.
struct Directory(PathBuf);

impl Directory {
    fn new(test: &str) -> Directory {
        let path = std::env::temp_dir().join(format!("sluice-kubeconfig-{}-{test}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        let signed = rcgen::generate_simple_self_signed(["api.example".to_owned()]).unwrap();
        std::fs::write(path.join("ca.pem"), signed.cert.pem()).unwrap();
        std::fs::write(path.join("key.pem"), signed.signing_key.serialize_pem()).unwrap();
        std::fs::write(path.join("token"), "of-the-file\n").unwrap();
        std::fs::write(path.join("empty"), "\n").unwrap();
        Directory(path)
    }

    fn base64(&self, file: &str) -> String {
        STANDARD.encode(std::fs::read(self.0.join(file)).unwrap())
    }

    fn read(&self, cluster: &str, user: &str) -> Result<Chosen, Wrong> {
        choose(&kubeconfig(cluster, user), &self.0, None)
    }

    fn header(&self, user: &str) -> Option<String> {
        let chosen = self.read("server: https://api", user).unwrap();
        let header = chosen.authorization.header().unwrap();
        header.map(|header| header.to_str().unwrap().to_owned())
    }

    fn wrong(&self, cluster: &str, user: &str) -> Wrong {
        self.read(cluster, user).err().unwrap_or_else(|| panic!("{cluster} {user} is read"))
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn kubeconfig(cluster: &str, user: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Config\nclusters: [{{name: c, cluster: {{{cluster}}}}}]\n\
         users: [{{name: u, user: {{{user}}}}}]\ncontexts: [{{name: x, context: {{cluster: c, user: u}}}}]\n\
         current-context: x\n"
    )
}

#[test]
fn the_token_of_a_file_comes_before_a_token_and_white_space_around_it_is_nothing() {
    let directory = Directory::new("token");
    assert_eq!(directory.header("").as_deref(), None);
    assert_eq!(directory.header("token: plain").as_deref(), Some("Bearer plain"));
    assert_eq!(directory.header("tokenFile: token").as_deref(), Some("Bearer of-the-file"));
    assert_eq!(directory.header("token: plain, tokenFile: token").as_deref(), Some("Bearer of-the-file"));
    assert_eq!(directory.header("token: plain, tokenFile: missing").as_deref(), Some("Bearer plain"));
    assert_eq!(directory.header("token: '', tokenFile: ''").as_deref(), None);
    assert_eq!(directory.header("username: ann, password: pw").as_deref(), Some("Basic YW5uOnB3"));
    assert_eq!(directory.header("username: ann").as_deref(), Some("Basic YW5uOg=="));
    // What is empty is as good as not there.
    assert_eq!(
        directory.header("as-groups: [], as-uid: '', as-user-extra: {}, token: t").as_deref(),
        Some("Bearer t")
    );
}

#[test]
fn what_client_go_refuses_is_refused_with_its_field_and_without_a_secret() {
    let directory = Directory::new("refused");
    let data = directory.base64("ca.pem");
    let ca_twice =
        format!("server: https://h, certificate-authority: ca.pem, certificate-authority-data: {data}");
    for (cluster, user, field, reason) in [
        ("", "", "clusters[0].cluster.server", "is not set"),
        ("server: ftp://h", "", "clusters[0].cluster.server", "http"),
        ("server: h/path", "", "clusters[0].cluster.server", "HOST:PORT"),
        ("server: https://h, proxy-url: 'ftp://u:secret@p'", "", "clusters[0].cluster.proxy-url", "socks5"),
        ("server: https://h, proxy-url: p", "", "clusters[0].cluster.proxy-url", "use http"),
        (&ca_twice, "", "clusters[0].cluster.certificate-authority-data", "remove one"),
        (
            "server: https://h, certificate-authority: missing",
            "",
            "clusters[0].cluster.certificate-authority",
            "cannot read",
        ),
        (
            "server: https://h, certificate-authority: key.pem",
            "",
            "clusters[0].cluster.certificate-authority ",
            "no certificate",
        ),
        (
            "server: https://h, certificate-authority-data: '*'",
            "",
            "clusters[0].cluster.certificate-authority-data",
            "base64",
        ),
        (
            "server: https://h, certificate-authority: ca.pem, insecure-skip-tls-verify: true",
            "",
            "clusters[0].cluster.insecure-skip-tls-verify",
            "remove one",
        ),
        ("server: https://h", "client-certificate: ca.pem", "users[0].user.client-key", "is not set"),
        (
            "server: https://h",
            "client-certificate: ca.pem, client-key: ca.pem",
            "users[0].user.client-key ",
            "no private key",
        ),
        (
            "server: https://h",
            "client-certificate: token, client-key: key.pem",
            "users[0].user.client-certificate ",
            "no certificate",
        ),
        ("server: https://h", "tokenFile: missing", "users[0].user.tokenFile", "missing"),
        ("server: https://h", "tokenFile: empty", "users[0].user.tokenFile", "empty"),
        ("server: https://h", "token: \"a\\nsecret\"", "users[0].user.token", "characters"),
        ("server: https://h", "token: secret, username: ann", "users[0].user.username", "remove one"),
        ("server: https://h", "tokenFile: token, password: secret", "users[0].user.password", "remove one"),
        ("server: https://h", "password: 12345", "users[0].user.password", "quotes"),
        ("server: https://h", "auth-provider: {name: gcp}", "users[0].user.auth-provider", "exec"),
        ("server: https://h", "as-groups: [admins]", "users[0].user.as", "is not set"),
        (
            "server: https://h",
            "exec: {apiVersion: client.authentication.k8s.io/v1}",
            "users[0].user.exec.command",
            "is not set",
        ),
        (
            "server: https://h",
            "exec: {command: a, apiVersion: v1}",
            "users[0].user.exec.apiVersion",
            "none of",
        ),
        (
            "server: https://h",
            "exec: {command: a, apiVersion: client.authentication.k8s.io/v1}",
            "users[0].user.exec.interactiveMode",
            "Never",
        ),
    ] {
        let wrong = directory.wrong(cluster, user);
        assert!(wrong.field.starts_with(field), "{cluster} {user}: {wrong:?}");
        assert!(wrong.reason.contains(reason), "{cluster} {user}: {wrong:?}");
        assert!(!wrong.to_string().contains("secret") && !wrong.to_string().contains("12345"), "{wrong}");
    }
}

#[test]
fn the_context_leads_to_cluster_and_user_and_a_name_that_is_nowhere_is_an_error() {
    let whole = kubeconfig("server: https://h", "");
    let choose = |text: &str| choose(text, Path::new("/"), None).map(|chosen| chosen.server.to_string());
    assert_eq!(choose(&whole).as_deref(), Ok("https://h/"));
    // Users that are not there are nobody, as with client-go.
    assert_eq!(choose(&whole.replace("user: u", "user: other")).as_deref(), Ok("https://h/"));
    assert_eq!(choose(&whole.replace("kind: Config\n", "")).as_deref(), Ok("https://h/"));
    assert_eq!(
        choose(&format!("{whole}unknown: [1]\npreferences: {{}}\nextensions: []\n")).as_deref(),
        Ok("https://h/")
    );
    assert_eq!(choose(&format!("\u{feff}{whole}current-context: x\n")).as_deref(), Ok("https://h/"));
    for behind in ["---\n", "...\n", "---\nkind: Other\n", "--- # nothing\n"] {
        assert_eq!(choose(&format!("{whole}{behind}")).as_deref(), Ok("https://h/"), "{behind}");
    }
    let json = serde_json::to_string(&go_yaml::first_document(&whole).unwrap().value).unwrap();
    assert_eq!(choose(&json).as_deref(), Ok("https://h/"));
    for (from, to, field) in [
        ("current-context: x", "", "current-context"),
        ("current-context: x", "current-context: y", "current-context"),
        ("cluster: c,", "cluster: d,", "contexts[0].context.cluster"),
        ("kind: Config", "kind: Pod", "kind"),
        ("apiVersion: v1", "apiVersion: v2", "apiVersion"),
        ("users: [", "users: [{name: u, user: {}}, ", "users[1].name"),
        ("clusters: [", "clusters: [7, ", "clusters[0]"),
        ("clusters: [{name: c, cluster: {server: https://h}}]", "clusters: {}", "clusters"),
    ] {
        let text = whole.replace(from, to);
        assert_ne!(text, whole, "{from}");
        assert_eq!(choose(&text).unwrap_err().field, field, "{to}");
    }
    assert_eq!(choose("").unwrap_err().field, "text");
    assert_eq!(choose("- a").unwrap_err().field, "text");
    assert!(choose("a: [").unwrap_err().field.starts_with("line "));
}

#[test]
fn the_fields_of_a_cluster_and_a_user_are_taken_over() {
    let directory = Directory::new("fields");
    let cluster = format!(
        "server: 'HTTPS://API.example:6443/prefix?x#y', tls-server-name: api.example, \
         certificate-authority-data: \"{}\", proxy-url: 'socks5://p', disable-compression: true",
        directory.base64("ca.pem").replace('=', "=\\n")
    );
    let user = format!(
        "client-certificate: ca.pem, client-key-data: {}, as: bob, as-uid: '7', as-groups: [a, b], \
         as-user-extra: {{k: [v]}}",
        directory.base64("key.pem")
    );
    let chosen = directory.read(&cluster, &user).unwrap();
    assert_eq!(chosen.server, "https://API.example:6443/prefix");
    assert_eq!(chosen.server_name.as_deref(), Some("api.example"));
    assert_eq!(chosen.roots.map(|roots| roots.len()), Some(1));
    assert_eq!(chosen.proxy.unwrap().uri, "socks5://p:1080/");
    assert_eq!(chosen.user.client_certificate_data, Some(directory.base64("ca.pem")));
    assert!(chosen.user.client_key_data.is_some());
    assert_eq!(chosen.user.impersonate.as_deref(), Some("bob"));
    assert_eq!(chosen.user.impersonate_uid.as_deref(), Some("7"));
    assert_eq!(chosen.user.impersonate_groups.unwrap(), ["a", "b"]);
    assert_eq!(chosen.user.impersonate_user_extra.unwrap()["k"], ["v"]);
    // A key alone means nothing, and a server without a scheme is http.
    let chosen = directory.read("server: 'h:8080'", "client-key: key.pem").unwrap();
    assert_eq!(
        (chosen.server.to_string().as_str(), chosen.user.client_key_data.is_none()),
        ("http://h:8080/", true)
    );
}

#[test]
fn credentials_are_for_tls_only() {
    let directory = Directory::new("clear");
    let exec = "exec: {command: login, apiVersion: client.authentication.k8s.io/v1beta1}";
    for server in ["http://h:8080", "HTTP://h:8080", "'h:8080'", "'h:8080/'", "h"] {
        let cluster =
            format!("server: {server}, certificate-authority: ca.pem, tls-server-name: api.example");
        for user in [
            "token: secret, as: bob",
            "tokenFile: token, as: bob",
            "username: ann, password: pw, as: bob",
            "client-certificate: ca.pem, client-key: key.pem, as: bob",
            &format!("{exec}, as: bob"),
        ] {
            let chosen = directory.read(&cluster, user).unwrap();
            assert_eq!(chosen.server.scheme_str(), Some("http"), "{server}");
            assert!(!chosen.authorization.is_some(), "{server} {user}");
            let AuthInfo { client_certificate_data, client_key_data, exec, impersonate, .. } = chosen.user;
            assert!(client_certificate_data.is_none() && client_key_data.is_none() && exec.is_none());
            assert_eq!(impersonate.as_deref(), Some("bob"));
            assert!(chosen.roots.is_none() && chosen.server_name.is_none() && !chosen.insecure);
        }
        // --master counts as the server.
        let master = server_url("http://other:8080", "http").unwrap();
        let text = kubeconfig("server: https://h", "token: secret");
        let chosen = choose(&text, &directory.0, Some(&master)).unwrap();
        assert!(!chosen.authorization.is_some());
    }
    // Of the pod's account, which names an authority, it is one with TLS.
    assert_eq!(server_url("h:6443", "https").unwrap(), "https://h:6443/");
    assert_eq!(server_url("http://h", "https").unwrap(), "http://h/");
    assert!(directory.wrong("server: 'h//'", "").reason.contains("HOST:PORT"));
    // What is wrong is told all the same.
    assert_eq!(directory.wrong("server: http://h", "token: t, username: u").field, "users[0].user.username");
}

#[test]
fn a_plugin_is_found_beside_the_kubeconfig_and_asked_only_without_a_token() {
    let directory = Directory::new("exec");
    let exec = "exec: {command: ./login, apiVersion: client.authentication.k8s.io/v1, interactiveMode: Never, \
                provideClusterInfo: true}";
    let cluster = "server: https://h, certificate-authority: ca.pem";
    let found = directory.read(cluster, exec).unwrap().user.exec.unwrap();
    assert_eq!(found.command.unwrap(), directory.0.join("./login").to_str().unwrap());
    assert!(found.cluster.unwrap().certificate_authority_data.is_some());
    assert!(directory.read(cluster, &format!("token: t, {exec}")).unwrap().user.exec.is_none());
}

#[test]
fn the_flag_for_the_server_replaces_it_and_the_name_in_its_certificate() {
    let master: Uri = "https://other:1".parse().unwrap();
    let text = kubeconfig("server: https://h, tls-server-name: n", "token: t");
    let chosen = choose(&text, Path::new("/"), Some(&master)).unwrap();
    assert_eq!((chosen.server, chosen.server_name), (master.clone(), None));
    assert!(chosen.authorization.is_some());
    // Then a kubeconfig without a context is nobody's.
    let chosen = choose(&text.replace("current-context: x", ""), Path::new("/"), Some(&master)).unwrap();
    assert!(!chosen.authorization.is_some());
}
