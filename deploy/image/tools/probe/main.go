// Command probe looks at an image from inside, where there is no shell to do it with, and plays the network outside of it:
//
//	probe look             prints as JSON who one is, and what could be written
//	probe serve CA-FILE    answers every DNS question with 127.0.0.1 on port 53 and every HTTPS request with an empty list
//	                       on port 443, says on standard output what it was asked, and writes its certificate to CA-FILE
package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"io/fs"
	"log"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"
	"golang.org/x/sys/unix"
)

const host = "arm.portcullis.test"

func main() {
	log.SetFlags(0)
	switch {
	case len(os.Args) == 2 && os.Args[1] == "look":
		look()
	case len(os.Args) == 3 && os.Args[1] == "serve":
		serve(os.Args[2])
	default:
		log.Fatal("usage: probe look | probe serve CA-FILE")
	}
}

// look tries to write what is there, and beside it.
func look() {
	found := struct {
		Uid, Gid int
		Groups   []int
		Status   map[string]string
		Looked   int
		Writable []string
		ReadOnly bool
		Memory   string
	}{Uid: os.Getuid(), Gid: os.Getgid(), Status: map[string]string{}, Writable: []string{}}
	found.Groups, _ = os.Getgroups()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		log.Fatal(err)
	}
	for line := range strings.SplitSeq(string(status), "\n") {
		if name, value, is := strings.Cut(line, ":"); is && (strings.HasPrefix(name, "Cap") || name == "NoNewPrivs" || name == "Seccomp") {
			found.Status[name] = strings.TrimSpace(value)
		}
	}
	var root unix.Statfs_t
	if err := unix.Statfs("/", &root); err != nil {
		log.Fatal(err)
	}
	found.ReadOnly = root.Flags&unix.ST_RDONLY != 0
	for _, file := range []string{"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"} {
		if text, err := os.ReadFile(file); err == nil {
			found.Memory = strings.TrimSpace(string(text))
		}
	}
	err = filepath.WalkDir("/", func(path string, entry fs.DirEntry, err error) error {
		if path == "/proc" || path == "/sys" || path == "/dev" {
			return fs.SkipDir
		}
		if err != nil {
			// What cannot be read could still be written.
			found.Writable = append(found.Writable, fmt.Sprintf("%s: %v", path, err))
			return nil
		}
		found.Looked++
		if entry.IsDir() {
			file := filepath.Join(path, ".probe")
			if made, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600); err == nil {
				made.Close()
				os.Remove(file)
				found.Writable = append(found.Writable, path)
			}
			if unix.Chmod(path, 0o777) == nil {
				found.Writable = append(found.Writable, path+" (mode)")
			}
		} else if entry.Type().IsRegular() {
			if opened, err := os.OpenFile(path, os.O_WRONLY, 0); err == nil {
				opened.Close()
				found.Writable = append(found.Writable, path)
			}
		}
		return nil
	})
	if err != nil {
		log.Fatal(err)
	}
	if err := json.NewEncoder(os.Stdout).Encode(found); err != nil {
		log.Fatal(err)
	}
}

func serve(authority string) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		log.Fatal(err)
	}
	issue := func(template, parent *x509.Certificate, own, signer *ecdsa.PrivateKey) []byte {
		template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
		issued, err := x509.CreateCertificate(rand.Reader, template, parent, &own.PublicKey, signer)
		if err != nil {
			log.Fatal(err)
		}
		return issued
	}
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	ca.Subject.CommonName = "probe"
	root := issue(ca, ca, key, key)
	own, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		log.Fatal(err)
	}
	leaf := issue(&x509.Certificate{
		SerialNumber: big.NewInt(2),
		DNSNames:     []string{host},
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, ca, own, key)

	packets, err := net.ListenPacket("udp", "127.0.0.1:53")
	if err != nil {
		log.Fatal(err)
	}
	listener, err := tls.Listen("tcp", "127.0.0.1:443", &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{leaf}, PrivateKey: own}},
		NextProtos:   []string{"http/1.1"},
	})
	if err != nil {
		log.Fatal(err)
	}
	// Once it is there, it can be asked.
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: root})
	if err := os.WriteFile(authority+".new", text, 0o644); err != nil {
		log.Fatal(err)
	}
	if err := os.Rename(authority+".new", authority); err != nil {
		log.Fatal(err)
	}
	go names(packets)
	answer := http.HandlerFunc(func(writer http.ResponseWriter, request *http.Request) {
		fmt.Printf("https %s %s %s\n", request.Host, request.Method, request.URL.Path)
		writer.Header().Set("Content-Type", "application/json")
		io.WriteString(writer, `{"value":[]}`)
	})
	quiet := log.New(io.Discard, "", 0)
	log.Fatal((&http.Server{Handler: answer, ErrorLog: quiet}).Serve(listener))
}

// names answers for the one host.
func names(packets net.PacketConn) {
	buffer := make([]byte, 1500)
	for {
		read, from, err := packets.ReadFrom(buffer)
		if err != nil {
			log.Fatal(err)
		}
		var message dnsmessage.Message
		if message.Unpack(buffer[:read]) != nil || len(message.Questions) != 1 {
			continue
		}
		asked := message.Questions[0]
		fmt.Printf("dns %s %s\n", asked.Name, asked.Type)
		answer := dnsmessage.Message{
			Header:    dnsmessage.Header{ID: message.ID, Response: true, Authoritative: true, RecursionAvailable: true},
			Questions: message.Questions,
		}
		if !strings.EqualFold(asked.Name.String(), host+".") {
			answer.RCode = dnsmessage.RCodeNameError
		} else if asked.Type == dnsmessage.TypeA {
			answer.Answers = []dnsmessage.Resource{{
				Header: dnsmessage.ResourceHeader{Name: asked.Name, Class: dnsmessage.ClassINET, TTL: 1},
				Body:   &dnsmessage.AResource{A: [4]byte{127, 0, 0, 1}},
			}}
		}
		if packed, err := answer.Pack(); err == nil {
			packets.WriteTo(packed, from)
		}
	}
}
