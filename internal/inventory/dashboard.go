package inventory

// Dashboard says where the auditor serves its pages, and to whom. Listen is
// empty where it serves none. Files are read anew when they are needed, so that
// a new token or certificate wants no restart.
type Dashboard struct {
	Listen       string // host:port
	TokenFile    string // absolute; empty: nobody is asked for a token
	CertFile     string // absolute; empty: plain HTTP
	KeyFile      string // absolute
	ClientCAFile string // absolute; empty: nobody is asked for a certificate
}

// URL is where a browser finds it, empty where it is not served.
func (d Dashboard) URL() string {
	switch {
	case d.Listen == "":
		return ""
	case d.CertFile != "":
		return "https://" + d.Listen + "/"
	}
	return "http://" + d.Listen + "/"
}

// Asks reports whether whoever comes must show who they are.
func (d Dashboard) Asks() bool { return d.TokenFile != "" || d.ClientCAFile != "" }

// readDashboard reads the section; where there is none, nothing is served.
func readDashboard(v value) Dashboard {
	if v.node == nil {
		return Dashboard{}
	}
	o := v.object("listen", "token_file", "tls")
	if !o.isMapping() {
		return Dashboard{}
	}
	listen := o.at("listen")
	tls := o.at("tls").object("cert_file", "key_file", "client_ca_file")
	cert, key := tls.at("cert_file"), tls.at("key_file")
	d := Dashboard{
		Listen:       listen.address("127.0.0.1:9466", 1),
		TokenFile:    o.at("token_file").file(""),
		CertFile:     cert.file(""),
		KeyFile:      key.file(""),
		ClientCAFile: tls.at("client_ca_file").file(""),
	}
	if tls.isMapping() {
		if cert.node == nil {
			cert.missing("the server's certificate, PEM, with what is between it and its authority")
		}
		if key.node == nil {
			key.missing("the certificate's private key, PEM")
		}
	}
	switch {
	case isLoopback(d.Listen):
	case !d.Asks():
		listen.fault("is reached by other machines, and nobody is asked who they are: add token_file or tls.client_ca_file, or listen on 127.0.0.1")
	case d.CertFile == "":
		listen.warn("is reached by other machines, and the token and the pages pass the network in clear: add tls, unless what stands before it encrypts")
	}
	return d
}
